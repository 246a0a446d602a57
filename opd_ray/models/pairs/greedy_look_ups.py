"""How many problems of reference tables a model solves greedily, with transformers alone."""

from __future__ import annotations

import json
import random
import re

import torch
import transformers

from opd_ray.models.pairs.worked_look_ups import TOOLS
from opd_ray.tasks.reference_table import ReferenceProblem, draw_problems, look_up, tables_of

TURNS, TURN_TOKENS = 6, 24
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def heldout_problems(count: int, seed: int = 0) -> list[ReferenceProblem]:
    """So many held-out problems, each of another table."""
    return draw_problems(tables_of("heldout"), count, random.Random(f"greedy look-ups {seed}"))


def greedy_success(
    model: transformers.Qwen3ForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerBase,
    problems: list[ReferenceProblem],
    batch_rows: int = 128,
) -> float:
    """Share of ``problems`` that are solved within ``TURNS`` turns of ``TURN_TOKENS`` tokens."""
    model.eval()
    solved = 0
    for first in range(0, len(problems), batch_rows):
        live = {
            problem: tokenizer.apply_chat_template(
                [{"role": "user", "content": problem.question}],
                tools=TOOLS,
                tokenize=False,
                add_generation_prompt=True,
            )
            for problem in problems[first : first + batch_rows]
        }
        for _ in range(TURNS):
            if not live:
                break
            going_on = {}
            turns = _turns(model, tokenizer, list(live.values()))
            for (problem, text), turn in zip(live.items(), turns, strict=True):
                result = _result(problem, turn)
                if result is not None:
                    going_on[problem] = f"{text}{turn}<|tool|>{result}<|end|><|assistant|>"
                else:
                    solved += turn.endswith(tokenizer.eos_token) and problem.is_answered(turn)
            live = going_on
    return solved / len(problems)


def _turns(
    model: transformers.Qwen3ForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: list[str],
) -> list[str]:
    """What is written next, up to the token that ends a turn."""
    read = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**read, max_new_tokens=TURN_TOKENS, do_sample=False)
    written = tokenizer.batch_decode(ids[:, read["input_ids"].shape[1] :])
    return ["".join(text.partition(tokenizer.eos_token)[:2]) for text in written]


def _result(problem: ReferenceProblem, turn: str) -> str | None:
    """What the tool answers to a turn; None where it calls nothing that can be called."""
    found = _CALL.search(turn)
    try:
        return look_up(problem.table, json.loads(found[1])["arguments"]["row"]) if found else None
    except (ValueError, KeyError, TypeError):
        return None
