"""The well-known sets of problems: where each lies, which columns it has, what its answers need."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from opd_ray.data.cells import BadRow


def whole_number(text: str) -> str:
    """ "027" and "27.0" as "27".

    Raises:
        BadRow: anything but a whole number.
    """
    found = re.fullmatch(r"([+-]?)0*(\d+)(?:\.0*)?", text.strip())
    if found is None:
        raise BadRow(f"the answer {text!r} is no whole number")
    sign, digits = found.groups()
    return ("-" if sign == "-" and digits != "0" else "") + digits


def aime_number(text: str) -> str:
    """A whole number from 0 to 999, without leading zeros.

    Raises:
        BadRow: any other answer.
    """
    number = whole_number(text)
    if not 0 <= int(number) <= 999:
        raise BadRow(f"the answer {text!r} is none that the AIME can have: 0 to 999")
    return number


def after_hashes(text: str) -> str:
    """The number behind ``####``, or a text that is it alone, without thousands' commas."""
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
    licence: str
    split: str = "test"
    subset: str | None = None
    problems: int | None = None  # different ones in the whole set; None: not stated here
    prompt: tuple[str, ...] = ("problem", "question", "prompt")
    answer: tuple[str, ...] = ("answer",)
    id: tuple[str, ...] = ("id",)
    clean_prompt: Callable[[str], str] = str.strip
    clean_answer: Callable[[str], str] = str.strip


_CONTEST = "problems © MAA"
_GSM8K = Benchmark(
    name="gsm8k",
    title="GSM8K, test",
    hub="openai/gsm8k",
    subset="main",
    problems=1_319,
    licence="MIT",
    clean_answer=after_hashes,
)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="dapo_math_17k",
            title="DAPO-Math-17k",
            # The hub repeats its 17 thousand problems to 1.79 million rows.
            hub="BytedTsinghua-SIA/DAPO-Math-17k",
            split="train",
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
            licence="MIT",
            answer=("final_answer", "answer"),
        ),
        _GSM8K,
        replace(_GSM8K, name="gsm8k_train", title="GSM8K, train", split="train", problems=7_473),
        Benchmark(
            name="math500",
            title="MATH-500",
            hub="HuggingFaceH4/MATH-500",
            problems=500,
            licence="MIT",
            id=("unique_id", "id"),
        ),
        # The answer of AIME 2024 is never looked for in a box of its solution: for five of the
        # problems the first one holds no number.
        Benchmark(
            name="aime24",
            title="AIME 2024",
            hub="HuggingFaceH4/aime_2024",
            split="train",
            problems=30,
            licence=f"Apache-2.0; {_CONTEST}",
            clean_answer=aime_number,
        ),
        Benchmark(
            name="aime25",
            title="AIME 2025",
            hub="math-ai/aime25",
            problems=30,
            licence=f"Apache-2.0; {_CONTEST}",
            clean_answer=aime_number,
        ),
        Benchmark(
            name="amc23",
            title="AMC 2023",
            hub="math-ai/amc23",
            problems=40,
            licence=_CONTEST,
            clean_answer=whole_number,
        ),
    )
}


def nearest(name: str) -> str:
    """For messages: the set that an unknown name may mean, or else all of them."""
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(BENCHMARKS)}"
