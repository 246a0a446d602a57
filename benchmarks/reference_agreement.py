"""How near students are to a teacher on reference solutions that neither of them wrote.

    python benchmarks/reference_agreement.py --dialogues FILE.jsonl --teacher FOLDER STUDENT ...

Every line of FILE has a `prompt` and a `solution`. Prints KL(teacher || student) in nats a token
and how often both have the same likeliest token, exact and in float32, over the first 128 tokens of
each solution. Beside a run's own figures, which are taken on what the student writes, these compare
students on one text.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from agreement import agreement
from transformers import AutoModelForCausalLM, AutoTokenizer

SOLUTION_TOKENS = 128


def read_dialogues(file: Path, count: int, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts, as the chat template has them, and of their solutions."""
    dialogues = []
    with file.open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(count), strict=False):
            row = json.loads(line)
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            prompt_ids, solution_ids = (
                tokenizer(text, add_special_tokens=False).input_ids
                for text in (prompt, row["solution"] + tokenizer.eos_token)
            )
            dialogues.append((prompt_ids, solution_ids[:SOLUTION_TOKENS]))
    return dialogues


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("students", nargs="+", help="Hugging Face folders")
    parser.add_argument("--teacher", required=True, help="Hugging Face folder")
    parser.add_argument("--dialogues", type=Path, required=True, help="JSONL: prompt, solution")
    parser.add_argument("--count", type=int, default=48, help="lines read (default %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    dialogues = read_dialogues(arguments.dialogues, arguments.count, tokenizer)
    tokens = sum(len(solution) for _, solution in dialogues)
    teacher = AutoModelForCausalLM.from_pretrained(arguments.teacher, dtype=torch.float32).eval()
    for folder in arguments.students:
        student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        found = [agreement(teacher, student, prompt, solution) for prompt, solution in dialogues]
        divergence, equal = (sum(values) / tokens for values in zip(*found, strict=True))
        print(f"{folder}: KL {divergence:.3f} nats, equal likeliest tokens {equal:.3f}")


if __name__ == "__main__":
    main()
