"""A pool of rollout actors that are plain objects, whose events come when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from fake_replicas import writers_of
from stand_ins import Engine, Response, Script, StandInWatch

from opd_ray.pools.rollouts import RolloutPool
from opd_ray.types import Rollout, RolloutRequest, Sampling

NAMES = [f"{key}{sample}" for key in "abc" for sample in range(4)]
RESPONSES = {
    name: Response(mask=[1] * size, logprob=[-0.1] * size, reverse_kl=[0.1] * size)
    for size, name in enumerate(NAMES, start=1)
}


class Bench:
    """A pool of engines whose events come when the test says so.

    Args:
        engines: how many.
        max_in_flight: requests each has at once.
        max_restarts: of each.
    """

    def __init__(
        self,
        engines: int = 2,
        max_in_flight: int = 2,
        max_restarts: int = 1,
        answer_timeout_s: float | None = None,
    ) -> None:
        self.draw, self.script = Random(0), Script(RESPONSES)
        self.watch: Any = StandInWatch(self.draw)
        self.watch._make = lambda name: Engine(self.script, self.draw, name)
        named = [(f"rollout-{n}", self.watch._make(f"rollout-{n}")) for n in range(engines)]
        self.engines: list[Engine] = [engine for _, engine in named]
        self.pool: RolloutPool = writers_of(
            self.watch, named, max_in_flight, max_restarts, answer_timeout_s
        )
        self.found: list[str] = []

    def start(self, count: int, lost: Callable[[Any], Any] = lambda ids: ()) -> None:
        self.pool.start(requests(count), Sampling(), self._deliver, record=True, lost=lost)

    def _deliver(self, rollouts: list[Rollout]) -> None:
        self.found += [rollout.rollout_id for rollout in rollouts]

    def item_of(self, engine: Engine) -> None:
        """The next item of its stream, or the end."""
        one = next(one for one in self.watch.streams if one[0].engine is engine)
        self.watch._next(one)

    def hear_of(self, engine: Engine, kind: str = "lifeline") -> None:
        """Its lifeline, or that it has loaded."""
        self.watch.arrive((engine, kind, 0))

    def let_time_pass(self, looks: int) -> None:
        """Until the watch has looked after everybody so often."""
        for _ in range(looks):
            self.watch.let_time_pass()

    def go_on(self) -> None:
        """Until all is written."""
        self.watch.wait_until(lambda: not self.pool.busy, "rollouts")


def requests(count: int) -> list[RolloutRequest]:
    prompt = np.zeros(1, dtype=np.int32)
    return [RolloutRequest(n, n[0], int(n[1]), prompt, 0) for n in NAMES[:count]]


def given(engine: Engine) -> list[str]:
    return [request.rollout_id for request in engine.given]
