"""Seconds of a step by stage, and the time in which no stage worked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Measures one step: nested use is refused, so the stages add up to at most the step.

    ``idle`` is the coordinator's own overhead: the step's wall time in which no stage was running.
    Where a stage's actors report how long they really worked (:meth:`worked`), the rest of that
    stage's wall time (calls, transport) counts as idle too.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._stages: dict[str, float] = {}
        self._idle_inside = 0.0
        self._running: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as the named stage."""
        if self._running is not None:
            raise RuntimeError(f"stage {name!r} began inside stage {self._running!r}")
        self._running = name
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._running = None
            self._stages[name] = self._stages.get(name, 0.0) + time.perf_counter() - begin

    def worked(self, name: str, seconds: float) -> None:
        """Say how long the actors of a finished stage really worked."""
        self._idle_inside += max(0.0, self._stages[name] - seconds)

    def report(self) -> dict[str, float]:
        """``seconds/<stage>`` for every stage, ``seconds/step`` and ``seconds/idle``."""
        step = time.perf_counter() - self._begin
        idle = max(0.0, step - sum(self._stages.values())) + self._idle_inside
        stages = {f"seconds/{name}": value for name, value in self._stages.items()}
        return {**stages, "seconds/step": step, "seconds/idle": idle}
