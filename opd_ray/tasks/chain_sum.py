"""The chain_sum task: sums written with running totals, made on the fly.

``12+34+56=`` is answered ``12+34=46,46+56=102.``. Difficulty is the number of terms and of digits.
Whether a problem is for training or held out is a property of the problem itself, so no choice
of seeds can leak one into the other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from opd_ray.seeds import digest64
from opd_ray.tasks.gold import short_gold

Split = Literal["train", "heldout"]

HELDOUT_ONE_IN = 10
# Below this many problems they are all listed, so that "not enough problems" is an exact answer.
_LISTABLE = 1 << 17

_NUMBER = re.compile(r"([+-]?\d+)(?:\.0*)?")
_FINAL_NUMBER = re.compile(r"=\s*(-?\d+)\s*\.?\s*\Z")


@dataclass(frozen=True)
class ChainSumProblem:
    """One sum: ``operands`` in the order they are written."""

    operands: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return "+".join(map(str, self.operands)) + "="

    @property
    def worked(self) -> str:
        """The worked answer, one addition at a time, closed by a full stop."""
        total = self.operands[0]
        steps = []
        for term in self.operands[1:]:
            steps.append(f"{total}+{term}={total + term}")
            total += term
        return ",".join(steps) + "."

    @property
    def answer(self) -> str:
        return str(sum(self.operands))

    @property
    def split(self) -> Split:
        """Decided by a hash of the sorted operands: 34+12 never trains for a held-out 12+34."""
        key = ",".join(map(str, sorted(self.operands))).encode()
        return "heldout" if digest64(key) % HELDOUT_ONE_IN == 0 else "train"


@dataclass(frozen=True)
class ChainSumGenerator:
    """Problems of one difficulty and one split, in an order fixed by ``seed``.

    Raises:
        ValueError: at construction, a difficulty that has no problems.
    """

    terms: int = 3
    digits: int = 2
    split: Split = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.terms < 2:
            raise ValueError(f"chain_sum terms = {self.terms}: a sum needs at least 2 terms")
        if self.digits < 1:
            raise ValueError(f"chain_sum digits = {self.digits}: a term needs at least 1 digit")
        if self.split not in ("train", "heldout"):
            raise ValueError(f"chain_sum split = {self.split!r}: use 'train' or 'heldout'")

    def endless(self) -> Iterator[ChainSumProblem]:
        """Independent draws for ever; a problem may come again."""
        rng = random.Random(f"chain_sum {self.terms} {self.digits} {self.split} {self.seed}")
        while True:
            problem = self._problem(rng.randrange(self._space))
            if problem.split == self.split:
                yield problem

    def available(self) -> int:
        """How many different problems :meth:`take` can give."""
        if self._space <= _LISTABLE:
            return len(self._all())
        # Half of the smaller split: rejecting repeats stays quick, and the bound is safe.
        return self._space // (2 * HELDOUT_ONE_IN)

    def take(self, count: int) -> list[ChainSumProblem]:
        """So many different problems.

        Raises:
            ValueError: the difficulty has fewer.
        """
        available = self.available()
        if count > available:
            raise ValueError(
                f"chain_sum has only {available} different {self.split} problems to give for "
                f"terms = {self.terms}, digits = {self.digits}, but {count} were asked for: "
                "ask for fewer, or raise terms or digits"
            )
        if self._space <= _LISTABLE:
            return self._all()[:count]
        chosen: dict[ChainSumProblem, None] = {}
        draws = self.endless()
        while len(chosen) < count:
            chosen.setdefault(next(draws))
        return list(chosen)

    def _all(self) -> list[ChainSumProblem]:
        rng = random.Random(f"chain_sum list {self.seed}")
        problems = map(self._problem, rng.sample(range(self._space), self._space))
        return [problem for problem in problems if problem.split == self.split]

    @property
    def _per_term(self) -> int:
        return 9 * 10 ** (self.digits - 1)

    @property
    def _space(self) -> int:
        return self._per_term**self.terms

    def _problem(self, number: int) -> ChainSumProblem:
        operands = []
        for _ in range(self.terms):
            number, term = divmod(number, self._per_term)
            operands.append(term + 10 ** (self.digits - 1))
        return ChainSumProblem(tuple(operands))


class ChainSumTask:
    """Verifier: the number after the last ``=`` must be the sum, and nothing may follow it."""

    name = "chain_sum"

    def extract(self, response_text: str) -> str | None:
        """The final number without leading zeros, or None when the text ends in anything else."""
        found = _FINAL_NUMBER.search(response_text)
        return str(int(found.group(1))) if found else None

    def verify(self, response_text: str, answer: str) -> bool:
        """Whether the response is right; ``answer`` is the sum, or worked and ends in it."""
        gold = self._sum(answer)
        return gold is not None and self.extract(response_text) == gold

    def gold_answer(self, answer: str) -> str:
        """The part of a gold answer that counts."""
        return short_gold(answer)

    def gold_problem(self, answer: str) -> str | None:
        """Why no response is right for this answer; None where one can be."""
        return "no whole number" if self._sum(answer) is None else None

    def _sum(self, answer: str) -> str | None:
        gold = short_gold(answer)
        if "=" in gold:
            return self.extract(gold)
        # "102.0" is what a column of numbers with gaps makes of 102.
        found = _NUMBER.fullmatch(gold.replace(",", ""))
        return str(int(found[1])) if found else None
