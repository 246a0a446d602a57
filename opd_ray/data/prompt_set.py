"""The prompts of a run, read row by row in an order that is derived from the step alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opd_ray.data.rows import DataError, PromptRow
from opd_ray.seeds import derive_seed, digest64


def problem_digest(student_ids: np.ndarray, row: Mapping[str, Any] | None) -> int:
    """64 bits of a problem: what the student reads, and what its environment is reset to.

    Args:
        student_ids: [P] int32, of the prompt.
        row: its columns where it has an environment, which may make another problem of each; as
            they are read, or with ``prompt`` as chat messages.
    """
    content = student_ids.tobytes()
    if row is not None:
        others = [(name, row[name]) for name in sorted(row) if name != "prompt"]
        content += json.dumps(others, default=str).encode()
    return digest64(content)


@dataclass(frozen=True)
class SourceReport:
    """The prompts in use that come from one source."""

    prompts: int
    # Tokens of the longest prompt that a teacher reads; None when no tokenizer was at hand.
    longest_teacher_prompt: int | None


@dataclass(frozen=True)
class LoadReport:
    """What became of the rows of a source."""

    read: int
    duplicates: int
    too_long: int
    beyond_limit: int
    # Tokens of the longest prompt used; None when no tokenizer was at hand.
    longest_prompt: int | None
    sources: Mapping[str, SourceReport]
    # What a user may not expect of how they are written.
    notes: Sequence[str] = ()

    @property
    def used(self) -> int:
        return self.read - self.duplicates - self.too_long - self.beyond_limit

    def __str__(self) -> str:
        text = f"{self.used} prompts of {self.read} rows"
        for count, why in (
            (self.duplicates, "duplicate"),
            (self.too_long, "too long"),
            (self.beyond_limit, "beyond the limit"),
        ):
            if count:
                text += f", {count} {why}"
        if self.longest_prompt is not None:
            text += f"; longest {self.longest_prompt} tokens"
        return text


@dataclass(frozen=True)
class PromptsIdentity:
    """Which prompts a run trains on."""

    count: int
    fingerprint: str  # of all that student and teacher are shown, in the source's order


@dataclass
class PromptSet:
    """Prompts by number and by step: only row numbers are in memory, rows are read when asked."""

    read: Callable[[int], PromptRow]  # from the number of a row in the source
    numbers: np.ndarray  # of the rows to use, all of them known to be good
    report: LoadReport
    shuffle: bool
    seed: int
    # problem_digest of each row; None without a tokenizer.
    digests: np.ndarray | None = None
    fingerprint: str = ""  # of all that student and teacher are shown, in the source's order
    # (steps, prompts of each) of the parts of the run that came before this one, in their order.
    earlier: tuple[tuple[int, int], ...] = ()
    # (epoch, batch size) -> order; two epochs are in use where a batch lies across both.
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def identity(self) -> PromptsIdentity:
        """By which a run that goes on knows its prompts again."""
        return PromptsIdentity(len(self), self.fingerprint)

    def going_on_after(self, earlier: Sequence[tuple[int, int]]) -> PromptSet:
        """The same prompts for a run that took ``earlier`` of them, see there."""
        return replace(self, earlier=tuple(earlier))

    def row(self, index: int) -> PromptRow:
        """The prompt at ``index``, in the order of the source."""
        return self.read(int(self.numbers[index]))

    def batch(self, step: int, size: int) -> list[PromptRow]:
        """The ``size`` prompts of a step (counted from 0).

        Nothing but step, size, seed and what was taken earlier decides. An epoch uses
        every prompt once, in an order of its own. No batch holds a prompt twice, not even where
        two epochs meet.

        Raises:
            DataError: there are fewer than ``size`` prompts.
        """
        if step < 0 or size < 1:
            raise ValueError(f"step = {step}, size = {size}: use step >= 0 and size >= 1")
        if size > len(self):
            raise DataError(
                f"a step wants {size} prompts but there are only {len(self)}: "
                "lower rollout.prompts_per_step or give more prompts"
            )
        begin, steps = self._taken_earlier
        if step < steps:
            raise ValueError(f"step = {step}: this part of the run begins at step {steps}")
        begin += (step - steps) * size
        rows = []
        for position in range(begin, begin + size):
            epoch, within = divmod(position, len(self))
            rows.append(self.row(int(self._order(epoch, size)[within])))
        return rows

    @property
    def _taken_earlier(self) -> tuple[int, int]:
        """Prompts and steps of the parts before this one."""
        prompts = sum(steps * size for steps, size in self.earlier)
        return prompts, sum(steps for steps, _ in self.earlier)

    def _across(self, epoch: int, size: int) -> tuple[int, int]:
        """How many rows the batch that lies across an epoch's begin has before and behind it.

        (0, a batch) where a batch begins there.
        """
        boundary, begin = epoch * len(self), 0
        for steps, earlier_size in self.earlier:
            if boundary < begin + steps * earlier_size:
                size = earlier_size
                break
            begin += steps * earlier_size
        before = (boundary - begin) % size
        return before, size - before

    def _order(self, epoch: int, size: int) -> np.ndarray:
        """[len(self)] indices of an epoch, when it is now read in batches of ``size``."""
        if (epoch, size) not in self._orders:
            # An epoch depends on the end of the one before it. With two batches or more an epoch,
            # that end is as it was shuffled; with fewer it may depend on the one before in turn.
            known = (epoch - 1, size) in self._orders
            largest = max(size, *(earlier for _, earlier in self.earlier), 0)
            first = max(0, epoch - 1) if known or len(self) >= 2 * largest else 0
            order = self._orders[first, size] if known else self._shuffled(first)
            for later in range(first + 1, epoch + 1):
                taken, left = self._across(later, size)
                ended_with = order[len(order) - taken :]
                order = _postpone(self._shuffled(later), ended_with, left)
            self._orders = {
                key: kept for key, kept in self._orders.items() if key == (epoch - 1, size)
            }
            self._orders[epoch, size] = order
        return self._orders[epoch, size]

    def _shuffled(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self))
        seed = derive_seed("prompt order", self.seed, epoch)
        return np.random.default_rng(seed).permutation(len(self))


def _postpone(order: np.ndarray, indices: np.ndarray, places: int) -> np.ndarray:
    """``order`` changed as little as can be so that none of ``indices`` is in its first places."""
    held = np.isin(order, indices)
    first = np.flatnonzero(~held)[:places]
    rest = np.setdiff1d(np.arange(len(order)), first)
    return order[np.concatenate([first, rest])]
