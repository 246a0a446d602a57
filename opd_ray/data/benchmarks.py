"""The well-known sets of problems: where each lies, which columns it has, what its answers need."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from opd_ray.data.rows import BadRow


def unchanged(text: str) -> str:
    """The text as it is, without white space around it."""
    return text.strip()


def whole_number(text: str) -> str:
    """ "027" and "27.0" as "27"; raises `BadRow` for anything but a whole number."""
    found = re.fullmatch(r"([+-]?)0*(\d+)(?:\.0*)?", text.strip())
    if found is None:
        raise BadRow(f"the answer {text!r} is no whole number")
    sign, digits = found.groups()
    return ("-" if sign == "-" and digits != "0" else "") + digits


def aime_number(text: str) -> str:
    """A whole number from 0 to 999, without leading zeros; raises `BadRow` for any other answer."""
    number = whole_number(text)
    if not 0 <= int(number) <= 999:
        raise BadRow(f"the answer {text!r} is none that the AIME can have: 0 to 999")
    return number


def after_hashes(text: str) -> str:
    """The number behind `####`, or a text that is that number alone, without thousands' commas."""
    return whole_number(text.rpartition("####")[2].replace(",", ""))


_DAPO_OPENING = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
_DAPO_CLOSING = 'Remember to put your answer on its own line after "Answer:".'


def without_dapo_instruction(text: str) -> str:
    """The problem alone: the set's own instruction asks for another form of answer than a box."""
    text = text.strip()
    opens, closes = text.startswith(_DAPO_OPENING), text.endswith(_DAPO_CLOSING)
    if opens != closes:
        raise BadRow("the prompt has one half of the instruction that goes around the problem")
    if opens:
        text = text.removeprefix(_DAPO_OPENING).removesuffix(_DAPO_CLOSING)
    return text.strip()


@dataclass(frozen=True)
class Benchmark:
    """One set. Of several columns named for one thing, the first that a row has is read.

    The columns cover the hub's form, the copies that evaluation repositories keep, and our own.
    """

    name: str
    title: str
    hub: str
    split: str
    problems: int | None  # different ones in the whole set; None: not stated here
    licence: str
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    id: tuple[str, ...] = ("id",)
    subset: str | None = None
    clean_prompt: Callable[[str], str] = unchanged
    clean_answer: Callable[[str], str] = unchanged


_CONTEST = "problems © MAA"

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="dapo_math_17k",
            title="DAPO-Math-17k",
            hub="BytedTsinghua-SIA/DAPO-Math-17k",
            split="train",
            # The hub repeats its 17 thousand problems to 1.79 million rows.
            problems=None,
            licence="Apache-2.0",
            prompt=("prompt", "problem"),
            answer=("reward_model.ground_truth", "answer", "solution"),
            id=("extra_info.index", "id"),
            clean_prompt=without_dapo_instruction,
        ),
        Benchmark(
            name="deepmath",
            title="DeepMath-103K",
            hub="zwhe99/DeepMath-103K",
            split="train",
            problems=None,
            licence="MIT",
            prompt=("question", "prompt", "problem"),
            answer=("final_answer", "answer"),
        ),
        Benchmark(
            name="gsm8k",
            title="GSM8K, test",
            hub="openai/gsm8k",
            subset="main",
            split="test",
            problems=1_319,
            licence="MIT",
            prompt=("question", "prompt"),
            answer=("answer",),
            clean_answer=after_hashes,
        ),
        Benchmark(
            name="gsm8k_train",
            title="GSM8K, train",
            hub="openai/gsm8k",
            subset="main",
            split="train",
            problems=7_473,
            licence="MIT",
            prompt=("question", "prompt"),
            answer=("answer",),
            clean_answer=after_hashes,
        ),
        Benchmark(
            name="math500",
            title="MATH-500",
            hub="HuggingFaceH4/MATH-500",
            split="test",
            problems=500,
            licence="MIT",
            prompt=("problem", "prompt"),
            answer=("answer",),
            id=("unique_id", "id"),
        ),
        Benchmark(
            name="aime24",
            title="AIME 2024",
            hub="HuggingFaceH4/aime_2024",
            split="train",
            problems=30,
            licence=f"Apache-2.0; {_CONTEST}",
            prompt=("problem", "prompt"),
            # Never a box of the solution: for five of the problems the first one holds no number.
            answer=("answer",),
            clean_answer=aime_number,
        ),
        Benchmark(
            name="aime25",
            title="AIME 2025",
            hub="math-ai/aime25",
            split="test",
            problems=30,
            licence=f"Apache-2.0; {_CONTEST}",
            prompt=("problem", "question", "prompt"),
            answer=("answer",),
            clean_answer=aime_number,
        ),
        Benchmark(
            name="amc23",
            title="AMC 2023",
            hub="math-ai/amc23",
            split="test",
            problems=40,
            licence=_CONTEST,
            prompt=("question", "problem", "prompt"),
            answer=("answer",),
            clean_answer=whole_number,
        ),
    )
}
