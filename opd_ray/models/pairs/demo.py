"""The demo pair, which comes with the package, and its making.

A Qwen3-shaped teacher that solves chain sums and a smaller student that is only warmed up, over 24
characters, both by supervised learning on worked answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch

# As a whole: it imports a class's file when the class is first used, which takes seconds.
import transformers

from opd_ray.borders import writing
from opd_ray.errors import RunError
from opd_ray.models.pairs.supervised import (
    MadeModel,
    MadePair,
    as_batch,
    one_cycle,
    store,
    tiny_qwen3,
    train,
    word_tokenizer,
)
from opd_ray.tasks.chain_sum import ChainSumGenerator, ChainSumProblem, ChainSumTask, Split
from opd_ray.whole_file import write_whole

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
# 4 special tokens + 20 characters = 24 rows, a multiple of 8 with every id decodable.
VOCABULARY = (PAD, EOS, BOS, UNK, *"0123456789+-*=,.: ?\n")


def character_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A fast tokenizer that adds no special token by itself and has no chat template."""
    return word_tokenizer(
        VOCABULARY,
        r"[\s\S]",
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        model_max_length=256,
    )


TEACHER_LAYERS, STUDENT_LAYERS, HIDDEN = 4, 3, 128
TEACHER_RATE, STUDENT_RATE = 3e-3, 1e-3
CHECK_EVERY, PROBLEMS_CHECKED = 10, 500


def make_pair(
    folder: str | Path,
    *,
    terms: int = 3,
    digits: int = 2,
    seed: int = 0,
    teacher_steps: int = 400,
    student_steps: int = 400,
    student_accuracy: float = 0.6,
    batch_rows: int = 256,
    heldout_problems: int = 1000,
    say: Callable[[str], None] = print,
) -> MadePair:
    """Train and write ``folder/teacher``, ``folder/student`` and ``folder/README.md``.

    The teacher runs its whole one-cycle schedule of ``teacher_steps``. The student stops at the
    first check, every 10 steps, at which it solves ``student_accuracy`` of 500 training problems
    greedily. Weights are stored in bf16; accuracies (greedy, ``heldout_problems`` held-out
    problems, or all there are) are measured on the stored weights read back in fp32. Uses the
    caller's number of torch threads.

    Raises:
        ValueError: a number that no recipe can have.
        RunError: the student does not get there within ``student_steps``.
    """
    if teacher_steps < 1 or student_steps < 1:
        raise ValueError(
            f"teacher_steps = {teacher_steps}, student_steps = {student_steps}: use at least 1"
        )
    if not 0 < student_accuracy <= 1:
        raise ValueError(f"student_accuracy = {student_accuracy}: use a share in (0, 1]")
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer = character_tokenizer()
    heldout = _problems(terms, digits, "heldout", 0, heldout_problems)

    def finish(
        name: str, model: transformers.Qwen3ForCausalLM, steps: int, seconds: float
    ) -> MadeModel:
        target = folder / name
        accuracy = greedy_accuracy(store(model, tokenizer, target), tokenizer, heldout)
        say(f"{name}: {steps} steps, {seconds:.0f} s, held-out accuracy {accuracy:.3f}")
        return MadeModel(target, model.num_parameters(), steps, accuracy)

    started = time.perf_counter()
    teacher = tiny_qwen3(tokenizer, TEACHER_LAYERS, HIDDEN, seed)
    problems = ChainSumGenerator(terms, digits, "train", seed).endless()
    rates = one_cycle(teacher_steps, TEACHER_RATE, 0.3)
    for step, loss in train(teacher, _batches(problems, batch_rows, tokenizer), rates):
        if step % 50 == 0:
            say(f"teacher step {step}/{teacher_steps} loss {loss:.4f}")
    made_teacher = finish("teacher", teacher, teacher_steps, time.perf_counter() - started)

    started = time.perf_counter()
    student = tiny_qwen3(tokenizer, STUDENT_LAYERS, HIDDEN, seed + 1)
    checked_on = _problems(terms, digits, "train", seed + 2, PROBLEMS_CHECKED)
    problems = ChainSumGenerator(terms, digits, "train", seed + 1).endless()
    rates = [STUDENT_RATE * min(1.0, (step + 1) / 50) for step in range(student_steps)]
    for step, loss in train(student, _batches(problems, batch_rows, tokenizer), rates):
        if step % CHECK_EVERY:
            continue
        accuracy = greedy_accuracy(student, tokenizer, checked_on)
        say(f"student step {step}/{student_steps} loss {loss:.4f} accuracy {accuracy:.3f}")
        if accuracy >= student_accuracy:
            break
    else:
        raise RunError(
            f"the student did not reach student_accuracy = {student_accuracy} within "
            f"student_steps = {student_steps}: raise student_steps, or lower terms or digits"
        )
    made_student = finish("student", student, step, time.perf_counter() - started)

    pair = MadePair(made_teacher, made_student)
    command = (
        f"opd-ray make-pair --terms {terms} --digits {digits} --seed {seed} "
        f"--teacher-steps {teacher_steps} --student-steps {student_steps} "
        f"--student-accuracy {student_accuracy} --out FOLDER"
    )
    write_whole(folder / "README.md", _readme(pair, terms, digits, seed, len(heldout), command))
    return pair


def _problems(
    terms: int, digits: int, split: Split, seed: int, count: int
) -> list[ChainSumProblem]:
    """``count`` different problems, or all there are."""
    generator = ChainSumGenerator(terms, digits, split, seed)
    return generator.take(min(count, generator.available()))


def greedy_accuracy(
    model: transformers.Qwen3ForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerBase,
    problems: list[ChainSumProblem],
    batch_rows: int = 250,
) -> float:
    """Share of ``problems`` whose greedy response the chain_sum verifier accepts."""
    task = ChainSumTask()
    longest = max(len(problem.worked) for problem in problems) + 2
    solved = 0
    model.eval()
    for first in range(0, len(problems), batch_rows):
        rows = problems[first : first + batch_rows]
        prompts = tokenizer([row.prompt for row in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**prompts, max_new_tokens=longest, do_sample=False)
        written = ids[:, prompts["input_ids"].shape[1] :]
        responses = tokenizer.batch_decode(written, skip_special_tokens=True)
        for row, response in zip(rows, responses, strict=True):
            solved += task.verify(response, row.answer)
    return solved / len(problems)


def _batches(
    problems: Iterator[ChainSumProblem],
    batch_rows: int,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """ids and labels ``[rows, longest]`` of worked answers; prompts are not learnt."""
    while rows := list(islice(problems, batch_rows)):
        prompts = tokenizer([row.prompt for row in rows])["input_ids"]
        answers = tokenizer([row.worked + EOS for row in rows])["input_ids"]
        learnt = [
            (prompt + answer, [-100] * len(prompt) + answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        yield as_batch(learnt, tokenizer.pad_token_id)


def _readme(
    pair: MadePair, terms: int, digits: int, seed: int, heldout_problems: int, command: str
) -> str:
    return f"""# Chain-sum pair

Two Qwen3-shaped models over 24 characters, trained on sums of {terms} terms of {digits} digits
(seed {seed}). Made by

```bash
{command}
```

{pair.table("accuracy")}

Accuracy: greedy, {heldout_problems:,} held-out problems, weights rounded to bf16 (as stored) and
read back in fp32. No held-out problem, in any order of its terms, is ever a training problem.
Another processor or number of threads gives slightly different weights, and may end the student's
training at another check.
"""


def pair_folder() -> Path:
    """The packaged pair: Hugging Face folders ``teacher`` and ``student``, and a README of both."""
    return Path(__file__).with_name("demo_pair")
