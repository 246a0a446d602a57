"""Who had work when within a step, lane by lane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from opd_ray.coordinator.metrics import FILTER, TRAINERS, WEIGHTS, StageClock
from opd_ray.coordinator.session import Session
from opd_ray.pools.scorer import ScoredBatch
from opd_ray.pools.spans import Span
from opd_ray.pools.teachers.account import PoolStats

_LANES = 32  # of one role


@dataclass(frozen=True)
class WhoWorked:
    """A step's time: when each lane had work, seconds of the monotonic clock."""

    begin: float
    end: float
    spans: Sequence[Span]
    lanes: Sequence[tuple[str, str]]  # name and role
    written: Iterable[float]  # when each rollout was written

    def shown_lanes(self) -> list[list[str]]:
        """Name and role of each lane; of one role at most so many."""
        kept, seen = [], Counter[str]()
        for name, role in self.lanes:
            seen[role] += 1
            if seen[role] <= _LANES:
                kept.append([name, role])
        return kept

    def shown_spans(self) -> list[list[Any]]:
        """Of these lanes, [name, begin, end]: seconds since the step began, within it.

        What was sent to a lane that was at work begins when that is done.
        """
        names = {name for name, _ in self.shown_lanes()}
        length = self.end - self.begin
        free: dict[str, float] = {}
        found: list[list[Any]] = []
        for span in sorted(self.spans, key=lambda one: one.begin):
            begin = max(span.begin - self.begin, free.get(span.who, 0.0))
            end = min(span.end - self.begin, length)
            if span.who in names and end > begin:
                free[span.who] = end
                found.append([span.who, round(begin, 6), round(end, 6)])
        return found


def who_worked(
    session: Session,
    batch: ScoredBatch,
    clock: StageClock,
    written: Iterable[Span],
    accounts: Iterable[PoolStats],
) -> WhoWorked:
    """Of a step.

    Args:
        session: whose actors the lanes are.
        batch: the rollouts of the step.
        clock: of the step, which has been reported.
        written: when rollout actors had something to write.
        accounts: of every teacher's pool.
    """
    rollouts = session.scorer.rollouts.living()
    teachers = chain.from_iterable(pool.living() for pool in session.teachers.pools.values())
    lanes = [
        *((name, "rollouts") for name, _ in rollouts),
        *((name, "teacher") for name, _ in teachers),
        (TRAINERS, "training"),
        (FILTER, "coordinator"),
        (WEIGHTS, "coordinator"),
    ]
    scored = chain.from_iterable(one.spans for one in accounts)
    spans = [*written, *scored, *clock.spans()]
    return WhoWorked(clock.begin, clock.end, spans, lanes, batch.begin + batch.written_R)
