"""When an actor had work: what a report draws."""

from __future__ import annotations

from dataclasses import dataclass

# Kept of one kind of actor; those of a step with more lose their first ones.
MOST_SPANS = 4096


@dataclass(frozen=True)
class Span:
    """An actor, or a stage of the coordinator, from when to when.

    Seconds of the system's monotonic clock, which ``time.monotonic`` and ``time.perf_counter`` both
    read on Linux.
    """

    who: str
    begin: float
    end: float
