"""The rollout actors as one source of finished responses, shared by load."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from opd_ray.config.schema import RolloutSettings
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import Rollout, RolloutRequest, Sampling


@dataclass
class RolloutPool:
    """Feeds a batch of requests to several rollout actors and delivers what their streams bring.

    An actor never has more than ``max_in_flight`` unfinished requests: what its engine could not
    run yet waits here, and goes to whichever actor has room first. Requests of one prompt lie side
    by side, so an engine's prefix cache serves its samples.
    """

    watch: ActorWatch
    actors: Sequence[tuple[str, Any]]  # (name, Ray actor handle) pairs
    max_in_flight: int  # requests an engine runs at once (rollout.max_num_seqs)

    def __post_init__(self) -> None:
        self._waiting: deque[RolloutRequest] = deque()
        self._in_flight: dict[int, int] = {}  # requests by actor, of those whose stream is open
        self._open: set[int] = set()  # those that have not heard that no more requests come

    @property
    def busy(self) -> bool:
        """Whether a batch is being written."""
        return bool(self._in_flight)

    def start(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        deliver: Callable[[list[Rollout]], object],
        *,
        record: bool,
    ) -> None:
        """Begin a batch; ``deliver`` gets the rollouts as they end, while the watch waits."""
        if self.busy:
            raise RuntimeError("the rollouts of the last batch have not all been collected")
        self._waiting = deque(requests)
        self._open = set()
        share = -(-len(requests) // len(self.actors))
        for index, (_, handle) in enumerate(self.actors):
            first = self._take(min(share, self.max_in_flight))
            if not first:
                break
            self._in_flight[index] = len(first)
            more = bool(self._waiting)
            if more:
                self._open.add(index)
            stream = handle.generate.remote(first, sampling, record, more)
            self.watch.read(
                stream, partial(self._arrived, index, deliver), partial(self._ended, index)
            )
        if not self._waiting:
            self._close_all()

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Iterator[Rollout]:
        """The responses one by one, as they end (no scores, no teacher)."""
        found: deque[Rollout] = deque()
        self.start(requests, sampling, found.extend, record=False)
        while self.busy or found:
            while found:
                yield found.popleft()
            self.watch.wait_until(
                lambda: bool(found) or not self.busy, "rollouts", interruptible=True
            )

    def _arrived(
        self, index: int, deliver: Callable[[list[Rollout]], object], ref: ray.ObjectRef
    ) -> None:
        """Deliver an item of an actor's stream; the actor is given as many requests that wait."""
        name, handle = self.actors[index]
        rollouts: list[Rollout] = self.watch.get(ref, name)
        self._in_flight[index] -= len(rollouts)
        refill = self._take(self.max_in_flight - self._in_flight[index])
        if refill:
            self._in_flight[index] += len(refill)
            handle.add.remote(refill, True)
        if not self._waiting:
            self._close_all()
        deliver(rollouts)

    def _ended(self, index: int) -> None:
        """
        Raises:
            RuntimeError: an actor's stream ended with requests unanswered.
        """
        if missing := self._in_flight.pop(index):
            name = self.actors[index][0]
            raise RuntimeError(f"{name} ended its stream with {missing} requests unanswered")

    def call_transport(self, method: str, *args: Any) -> list[Any]:
        """Call every actor's end of the weight transport; references in ``args`` are resolved."""
        refs = [
            (handle.call_transport.remote(method, *args), f"{name} (weight transport, {method})")
            for name, handle in self.actors
        ]
        return self.watch.get_all(refs)

    @property
    def handles(self) -> list[Any]:
        """The actors' Ray handles."""
        return [handle for _, handle in self.actors]

    def _take(self, count: int) -> list[RolloutRequest]:
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def _close_all(self) -> None:
        """Tell every actor that has not heard so that no more requests come."""
        while self._open:
            self.actors[self._open.pop()][1].add.remote([], False)


def run_sampling(rollout: RolloutSettings) -> Sampling:
    """How a run's rollouts are sampled."""
    return Sampling(rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_new_tokens)
