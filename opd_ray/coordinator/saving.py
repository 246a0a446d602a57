"""Checkpoints of a run that goes on: copied at once, written beside the next step where it fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from ray import ObjectRef

from opd_ray.checksums import FileSum
from opd_ray.coordinator.session import Session
from opd_ray.output.checkpoint import Draft, RunState

BLOCKED = "seconds/checkpoint"  # of the run
WRITTEN = "checkpoint/written_seconds"  # from the beginning until it is in its place


class Checkpoints(Protocol):
    """Where checkpoints go (:class:`opd_ray.output.checkpoint.CheckpointStore`)."""

    def begin(self, state: RunState) -> Draft | None:
        """Begin one; None: none are kept."""


@dataclass
class _UnderWay:
    """A checkpoint that the trainers are writing."""

    draft: Draft
    began: float
    waiting: int  # for so many ranks
    sums: dict[str, FileSum] = field(default_factory=dict)


@dataclass
class Saving:
    """Writes a run's checkpoints, one at a time."""

    session: Session  # whose weights
    checkpoints: Checkpoints
    beside: bool | None  # run.checkpoint_beside
    _under_way: _UnderWay | None = None
    _figures: dict[str, float] = field(default_factory=dict)

    def save(self, state: RunState, write_more: Callable[[Path], bool], *, last: bool) -> None:
        """Write a checkpoint, or copy what it holds and have it written beside what comes next.

        One that is still being written is waited for first.

        Args:
            state: the run's.
            write_more: writes what else belongs to it into the folder it is given; False: that is
                not there, and without it there is to be no checkpoint.
            last: nothing comes next: it is in its place when this returns.

        Raises:
            WriteError: it cannot be written; what there was of it is gone.
            ActorFailure: by a rank.
        """
        began = time.perf_counter()
        self.finish()
        draft = self.checkpoints.begin(state)
        if draft is None:
            return
        with self._or_nothing(draft):
            if not write_more(Path(draft.trainer)):
                draft.discard()
                return
            if not last and self._goes_beside():
                asked = self.session.begin_save(draft.trainer)
                self._under_way = _UnderWay(draft, began, len(asked))
                for ref, owner in asked:
                    call = partial(self._arrived, self._under_way, owner)
                    self.session.scorer.watch.when_ready(ref, call)
            else:
                self._complete(draft, self.session.save(draft.trainer), began)
        self._figures[BLOCKED] = time.perf_counter() - began

    def finish(self) -> None:
        """Wait until the checkpoint under way, if there is one, is in its place.

        Raises:
            WriteError, ActorFailure: as :meth:`save`.
        """
        if self._under_way is not None:
            self.session.scorer.watch.wait_until(
                lambda: self._under_way is None, "a checkpoint that is being written"
            )

    def abandon(self) -> None:
        """Let go of the checkpoint under way, if there is one: whoever writes it is gone."""
        if self._under_way is not None:
            self._under_way.draft.discard()
            self._under_way = None

    def take_figures(self) -> dict[str, float]:
        """Seconds of checkpoints since this was last asked."""
        figures, self._figures = self._figures, {}
        return figures

    def _goes_beside(self) -> bool:
        if self.beside is None:
            return self.session.have_room_to_copy()
        return self.beside

    def _arrived(self, of: _UnderWay, owner: str, ref: ObjectRef) -> None:
        """A rank has written its part; comes inside some wait."""
        if of is not self._under_way:
            return  # abandoned
        with self._or_nothing(of.draft):
            of.sums |= self.session.scorer.watch.get(ref, owner)
            of.waiting -= 1
            if not of.waiting:
                self._complete(of.draft, of.sums, of.began)
                self._under_way = None

    @contextmanager
    def _or_nothing(self, draft: Draft) -> Iterator[None]:
        """A with block that works on a draft; if it fails, nothing is left of that."""
        try:
            yield
        except BaseException:
            self._under_way = None
            draft.discard()
            raise

    def _complete(self, draft: Draft, sums: dict[str, FileSum], began: float) -> None:
        draft.complete(sums)
        self._figures[WRITTEN] = time.perf_counter() - began
