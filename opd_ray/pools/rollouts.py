"""The rollout actors as one source of finished responses, shared by load."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from opd_ray.config.schema import RolloutSettings
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import Rollout, RolloutRequest, Sampling


@dataclass
class RolloutPool:
    """Feeds a batch of requests to several rollout actors and hands back their streams.

    An actor never has more than ``max_in_flight`` unfinished requests: what its engine could not
    run yet waits here, and goes to whichever actor has room first. Requests of one prompt lie side
    by side, so an engine's prefix cache serves its samples.
    """

    watch: ActorWatch
    actors: Sequence[tuple[str, Any]]  # (name, Ray actor handle) pairs
    max_in_flight: int  # requests an engine runs at once (rollout.max_num_seqs)

    def __post_init__(self) -> None:
        self._waiting: deque[RolloutRequest] = deque()
        self._in_flight: dict[int, int] = {}
        self._open: set[int] = set()  # those that have not heard that no more requests come
        self.streams: dict[Any, int] = {}

    def start(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, *, record: bool
    ) -> None:
        """Begin a batch; :attr:`streams` then holds one Ray generator per busy actor."""
        if self.streams:
            raise RuntimeError("the rollouts of the last batch have not all been collected")
        self._waiting = deque(requests)
        self._in_flight, self._open = {}, set()
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
            self.streams[stream] = index
        if not self._waiting:
            self._close_all()

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Iterator[Rollout]:
        """The responses one by one, as they end (no scores, no teacher)."""
        self.start(requests, sampling, record=False)
        while self.streams:
            for stream in self.watch.wait(list(self.streams), "rollouts", interruptible=True):
                yield from self.collect(stream)

    def collect(self, stream: Any) -> list[Rollout]:
        """What a ready stream brings; its actor is given as many of the requests that wait.

        Nothing where it has ended.

        Raises:
            RuntimeError: it ended with requests unanswered.
        """
        index = self.streams[stream]
        name = self.actors[index][0]
        try:
            ref = next(stream)
        except StopIteration:
            del self.streams[stream]
            if missing := self._in_flight[index]:
                raise RuntimeError(
                    f"{name} ended its stream with {missing} requests unanswered"
                ) from None
            return []
        rollouts: list[Rollout] = self.watch.get(ref, name)
        self._in_flight[index] -= len(rollouts)
        refill = self._take(self.max_in_flight - self._in_flight[index])
        if refill:
            self._in_flight[index] += len(refill)
            self.actors[index][1].add.remote(refill, True)
        if not self._waiting:
            self._close_all()
        return rollouts

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
