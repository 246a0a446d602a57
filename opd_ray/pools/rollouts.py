"""The rollout actors as one source of finished responses, shared by load."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from opd_ray.pools.watch import ActorWatch
from opd_ray.types import Rollout, RolloutRequest, Sampling


class RolloutPool:
    """Feeds a batch of requests to several rollout actors and hands back their streams.

    An actor never has more than ``max_in_flight`` unfinished requests: what its engine could not
    run yet waits here, and goes to whichever actor has room first. Requests of one prompt lie side
    by side, so an engine's prefix cache serves its samples.

    Args:
        watch: watches every wait.
        actors: (name, Ray actor handle) pairs.
        max_in_flight: requests an engine runs at once (``rollout.max_num_seqs``).
    """

    def __init__(
        self, watch: ActorWatch, actors: Sequence[tuple[str, Any]], max_in_flight: int
    ) -> None:
        self._watch = watch
        self._actors = list(actors)
        self._max_in_flight = max_in_flight
        self._waiting: deque[RolloutRequest] = deque()
        self._in_flight: dict[int, int] = {}
        self._closed: set[int] = set()
        self.streams: dict[Any, int] = {}

    def start(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, *, record: bool
    ) -> None:
        """Begin a batch; :attr:`streams` then holds one Ray generator per busy actor."""
        if self.streams:
            raise RuntimeError("the rollouts of the last batch have not all been collected")
        self._waiting = deque(requests)
        self._in_flight, self._closed = {}, set()
        share = -(-len(requests) // len(self._actors))
        for index, (_, handle) in enumerate(self._actors):
            first = self._take(min(share, self._max_in_flight))
            if not first:
                break
            self._in_flight[index] = len(first)
            more = bool(self._waiting)
            if not more:
                self._closed.add(index)
            stream = handle.generate.remote(first, sampling, record, more)
            self.streams[stream] = index
        if not self._waiting:
            self._close_all()

    def owner(self, stream: Any) -> str:
        """The name of the actor behind a stream."""
        return self._actors[self.streams[stream]][0]

    def finished(self, stream: Any, rollouts: Sequence[Rollout]) -> None:
        """Note what a stream brought, and give its actor as many waiting requests."""
        index = self.streams[stream]
        self._in_flight[index] -= len(rollouts)
        refill = self._take(self._max_in_flight - self._in_flight[index])
        if refill:
            self._in_flight[index] += len(refill)
            self._actors[index][1].add.remote(refill, True)
        if not self._waiting:
            self._close_all()

    def ended(self, stream: Any) -> None:
        """Note that a stream is exhausted.

        Raises:
            RuntimeError: it ended with requests unanswered.
        """
        owner = self.owner(stream)
        missing = self._in_flight[self.streams.pop(stream)]
        if missing:
            raise RuntimeError(f"{owner} ended its stream with {missing} requests unanswered")

    def call_transport(self, method: str, *args: Any) -> list[Any]:
        """Call every actor's end of the weight transport; references in ``args`` are resolved."""
        refs = [
            (handle.call_transport.remote(method, *args), f"{name} (weight transport, {method})")
            for name, handle in self._actors
        ]
        return self._watch.get_all(refs)

    @property
    def handles(self) -> list[Any]:
        """The actors' Ray handles."""
        return [handle for _, handle in self._actors]

    def _take(self, count: int) -> list[RolloutRequest]:
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def _close_all(self) -> None:
        """Tell every actor that has not heard so that no more requests come."""
        for index in self._in_flight:
            if index not in self._closed:
                self._closed.add(index)
                self._actors[index][1].add.remote([], False)


class RolloutStream:
    """Has the responses of a batch written, without a teacher."""

    def __init__(self, watch: ActorWatch, rollouts: RolloutPool) -> None:
        self._watch = watch
        self._rollouts = rollouts

    def rollouts(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Iterator[Rollout]:
        """The responses one by one, as they end (no scores, no teacher)."""
        self._rollouts.start(requests, sampling, record=False)
        while self._rollouts.streams:
            ready = self._watch.wait(list(self._rollouts.streams), "rollouts", interruptible=True)
            yield from self._next(ready)

    def _next(self, stream: object) -> list[Rollout]:
        """What a ready stream brings: finished rollouts, or nothing when it has ended."""
        owner = self._rollouts.owner(stream)
        try:
            ref = next(stream)  # type: ignore[call-overload]
        except StopIteration:
            self._rollouts.ended(stream)
            return []
        rollouts = self._watch.get(ref, owner)
        self._rollouts.finished(stream, rollouts)
        return rollouts
