"""The rollout actors as one source of finished responses, shared by load."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import ray

from opd_ray.config.schema import RolloutSettings
from opd_ray.errors import ActorDied, Asleep, RunError
from opd_ray.pools.fixed_shares import FixedShares
from opd_ray.pools.members import RestartPolicy
from opd_ray.pools.spans import MOST_SPANS, Span
from opd_ray.pools.watch import ActorWatch
from opd_ray.pools.writers import CatchUp, Writer, Writers
from opd_ray.types import Rollout, RolloutRequest, Sampling

Deliver = Callable[[list[Rollout]], object]
# Of rollouts that an actor wrote which has died since, those that have to be written again.
Lost = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class _Batch:
    """What is being written, or was last."""

    number: int  # no other has it; 0: none yet
    requests: dict[str, RolloutRequest]  # by rollout id, in their order
    sampling: Sampling
    record: bool
    deliver: Deliver
    lost: Lost

    def in_order(self, rollout_ids: Iterable[str]) -> list[RolloutRequest]:
        """These of its requests."""
        wanted = set(rollout_ids)
        return [request for key, request in self.requests.items() if key in wanted]


class RolloutPool:
    """Feeds a batch of requests to several rollout actors and delivers what their streams bring.

    An actor never has more than ``max_in_flight`` unfinished requests: what its engine could not
    run yet waits here, and goes to whichever actor has room first. Requests of one prompt lie side
    by side, so an engine's prefix cache serves its samples.

    When an actor dies or hangs, its requests come first again, and go to those that have room.
    Another is started in its place, as often as allowed; it writes once it has the weights that the
    others have. What the dead one's stream may still bring is ignored: nothing is delivered twice.

    With fixed shares (``run.deterministic``) a batch is cut into as many shares as there are
    places, and a share is written as a whole, by itself, by whoever is free. What stands beside a
    rollout in an engine then depends neither on who is done first nor on who dies: a share of which
    anything is lost is written again from its first request to its last.

    Args:
        watch: of the actors; their deaths end no wait from now on.
        actors: (name, Ray actor handle) pairs; they have loaded.
        max_in_flight: requests an engine runs at once (rollout.max_num_seqs).
        policy: of actors that die or hang.
        fixed_shares: see above.

    Attributes:
        max_in_flight: see above.
        shares: of a batch, where they are fixed.
    """

    def __init__(
        self,
        watch: ActorWatch,
        actors: Sequence[tuple[str, Any]],
        max_in_flight: int,
        policy: RestartPolicy,
        *,
        fixed_shares: bool = False,
    ) -> None:
        self.watch = watch
        self.max_in_flight = max_in_flight
        self._writers = Writers(actors, watch, policy, self._lose, self._share_out)
        self._batch = _Batch(0, {}, Sampling(), False, lambda rollouts: None, lambda ids: ids)
        self._waiting: deque[RolloutRequest] = deque()
        self.shares = FixedShares(len(actors)) if fixed_shares else None
        self._outstanding = 0  # requests of the batch that wait or are being written
        self._streams = 0  # that are open
        self._left_over = False  # whether any of them is written again after its batch
        self._updating = False  # whether new weights are on their way to all
        self._restarts = self._rewritten = 0
        self._spans: deque[Span] = deque(maxlen=MOST_SPANS)

    @property
    def busy(self) -> bool:
        """Whether a batch is being written."""
        return bool(self._outstanding or self._streams)

    @property
    def handles(self) -> list[Any]:
        """Ray's, of the actors that have loaded."""
        return [handle for _, handle in self.living()]

    def __contains__(self, rollout_id: str) -> bool:
        """Whether a rollout is of the batch that is being written, or was last."""
        return rollout_id in self._batch.requests

    def living(self) -> list[tuple[str, Any]]:
        """(name, handle) of the actors that have loaded, as far as is known."""
        return [(writer.name, writer.handle) for writer in self._writers.up()]

    def bring_weights_by(self, catch_up: CatchUp) -> None:
        """How actors that are started again get their weights; else they write with their own."""
        self._writers.catch_up = catch_up

    def start(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        deliver: Deliver,
        *,
        record: bool,
        lost: Lost = lambda ids: (),
    ) -> None:
        """Begin a batch; ``deliver`` gets the rollouts as they end, while the watch waits.

        Args:
            requests: one a rollout.
            sampling: of all.
            deliver: gets every rollout once, unless it is written again.
            record: see :meth:`actors.rollout.engine.RolloutEngine.add`.
            lost: is asked when an actor has died which rollouts of its are to be written again.
        """
        if self._writers.asleep:
            raise Asleep("the rollout actors", "rollouts")
        if self._left_over:
            self._finish()
        if self.busy:
            raise RuntimeError("the rollouts of the last batch have not all been collected")
        self._left_over = False
        by_id = {request.rollout_id: request for request in requests}
        self._begin(_Batch(self._batch.number + 1, by_id, sampling, record, deliver, lost))

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

    def abandon(self) -> None:
        """Give up the batch that is being written, if one is: nothing more of it is delivered."""
        for writer in self._writers.all():
            if writer.streaming:
                writer.handle.abort.remote(self._batch.number)
            # Answers of calls whose wait was left, as one to take in weights, are never counted.
            writer.owes = int(writer.loading)
            writer.unfinished.clear()
            writer.streaming = writer.closed = False
        self._streams = 0
        self._left_over = False
        self._begin(replace(self._batch, number=self._batch.number + 1, requests={}))

    def write_again(self, rollout_ids: Iterable[str]) -> None:
        """Have rollouts of the batch written once more, whose data died with an actor."""
        again = self._batch.in_order(rollout_ids)
        self._put_back(again, len(again))
        self._share_out()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """New weights come to all actors that are up; meanwhile nothing is given out.

        Those that come up in the meantime catch up afterwards.
        """
        if not self._writers.asleep:  # else what is to be written again waits for these weights
            self._finish()
        self._updating = True
        taking = self._writers.up()
        try:
            yield
        finally:
            self._updating = False
        for writer in taking:
            writer.current = True
        self._share_out()

    def sleep(self) -> None:
        """Have all actors give their memory back, weights and cache; what is written is collected.

        Raises:
            RuntimeError: a batch is being written.
        """
        if self.busy:
            raise RuntimeError("rollout actors are to sleep while they write")
        self._writers.sleep()

    def lie_asleep(self) -> None:
        """All actors are asleep already, as they were told to when they had loaded."""
        self._writers.lie_asleep()

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Have all take memory again: first of their weights, which are then to be brought anew.

        With their cache they write on.
        """
        self._writers.wake(part)
        if part == "kv_cache":
            self._writers.woken()
            self._share_out()

    def call_transport(self, method: str, *args: Any) -> list[Any]:
        """Call every actor's end of the weight transport; references in ``args`` are resolved.

        The answers of those that live. One that dies meanwhile is replaced.
        """
        found = self._writers.ask(
            self._writers.up(), lambda one: one.call_transport.remote(method, *args)
        )
        return [answer for _, answer in found]

    def peak_memory(self) -> dict[str, int]:
        """Of every actor, by name, bytes."""
        return self._writers.peak_memory()

    def take_counts(self) -> tuple[int, int]:
        """Actors started again, and rollouts that had to be written again, since the last call."""
        counts = self._restarts, self._rewritten
        self._restarts = self._rewritten = 0
        return counts

    def take_spans(self) -> list[Span]:
        """When which actor had something to write since the last call, up to now."""
        now, found = time.monotonic(), list(self._spans)
        self._spans.clear()
        for writer in self._writers.all():
            if writer.unfinished:
                found.append(Span(writer.name, writer.since, now))
        return found

    def end(self) -> None:
        """End every actor, those that are coming up too."""
        for writer in list(self._writers.all()):
            self._writers.bury(writer)

    def _begin(self, batch: _Batch) -> None:
        self._batch = batch
        if self.shares is None:
            self._waiting = deque(batch.requests.values())
        else:
            self.shares.cut(list(batch.requests.values()))
        self._outstanding = len(batch.requests)
        for writer in self._writers.all():
            writer.written.clear()
        self._share_out()

    def _finish(self) -> None:
        """Wait for what is written again after its batch: some of it nobody else waits for."""
        self.watch.wait_until(lambda: not self.busy, "rollouts that are written again")

    def _arrived(self, number: int, writer: Writer, ref: ray.ObjectRef) -> None:
        """Deliver an item of an actor's stream; the actor is given as many requests that wait."""
        if writer.dead or number != self._batch.number:
            return
        try:
            rollouts: list[Rollout] = self.watch.get(ref, writer.name)
        except ActorDied as death:
            self._lose(writer, death)
            return
        writer.heard = True
        if not rollouts:
            return  # a sign of life
        for rollout in rollouts:
            del writer.unfinished[rollout.rollout_id]
        if self.shares is not None:
            rollouts = self.shares.missing(rollouts)
        writer.written += [rollout.rollout_id for rollout in rollouts]
        self._outstanding -= len(rollouts)
        if not writer.unfinished:
            self._spans.append(Span(writer.name, writer.since, time.monotonic()))
            self._writers.answered(writer)
        if writer.can_take:
            self._give(writer, self.max_in_flight)
        if not self._outstanding:
            self._close_all()
        if rollouts:
            self._batch.deliver(rollouts)

    def _ended(self, number: int, writer: Writer) -> None:
        """
        Raises:
            RuntimeError: an actor's stream ended with requests unanswered.
        """
        if writer.dead or number != self._batch.number:
            return
        self._streams -= 1
        writer.streaming = writer.closed = False
        if missing := len(writer.unfinished):
            raise RuntimeError(f"{writer.name} ended its stream with {missing} requests unanswered")
        self._share_out()

    def _lose(self, writer: Writer, death: ActorDied) -> None:
        """Have a dead actor's requests written by others, and start another in its place."""
        if not self._writers.bury(writer):
            return
        if writer.unfinished:
            self._spans.append(Span(writer.name, writer.since, time.monotonic()))
        self._streams -= writer.streaming
        unfinished: Collection[str] = writer.unfinished
        if self.shares is not None:
            unfinished = self.shares.missing_ids(unfinished)
        lost = self._batch.lost(writer.written) if writer.written else ()
        back = self._batch.in_order([*unfinished, *lost])
        self._put_back(back, len(back) - len(unfinished))
        follows = f"{len(back)} rollouts are written again"
        self._restarts += self._writers.replace(writer, death, follows)
        self._share_out()

    def _put_back(self, requests: Sequence[RolloutRequest], finished: int) -> None:
        """Have requests wait once more, before all others; so many of them had been finished."""
        self._left_over |= bool(finished) and not self._outstanding
        self._outstanding += finished
        if self.shares is None:
            self._waiting.extendleft(reversed(requests))
        else:
            beside = [one.unfinished for one in self._writers.all()]
            self.shares.put_back([request.rollout_id for request in requests], beside)
        self._rewritten += len(requests)

    def _share_out(self) -> None:
        """Give what waits to all that can write, in equal shares, as far as they have room.

        Raises:
            RunError: nobody can write, nor will before the next push of weights.
        """
        if self._updating or self._writers.asleep or not (self._waiting or self.shares):
            return
        self._writers.catch_up_all()
        able = [writer for writer in self._writers.all() if writer.can_take]
        if able and self.shares is not None:
            for writer in able:
                if self.shares:
                    self._open_stream(writer, self.shares.next(), more=False)
        elif able:
            share = -(-len(self._waiting) // len(able))
            for writer in able:
                self._give(writer, share)
        elif not self._writers.any_will_write():
            raise RunError(
                "no rollout actor is left with the weights of the others, and this sync.backend "
                "brings them to actors that were started again only when it brings new ones to "
                "all; use sync.backend=ray, or run the same command to go on from the last "
                "checkpoint"
            )

    def _give(self, writer: Writer, most: int) -> None:
        room = self.max_in_flight - len(writer.unfinished)
        given = [self._waiting.popleft() for _ in range(min(most, room, len(self._waiting)))]
        if not given:
            return
        if not writer.streaming:
            self._open_stream(writer, given, more=True)
            return
        if not writer.unfinished:
            writer.since = time.monotonic()
            self._writers.expect(writer)
        writer.unfinished |= {request.rollout_id: request for request in given}
        writer.handle.add.remote(given, True, self._batch.number)

    def _open_stream(self, writer: Writer, given: Sequence[RolloutRequest], *, more: bool) -> None:
        """Have an actor that has no stream open begin one; ``more`` requests may come to it."""
        self._writers.expect(writer)
        writer.since = time.monotonic()
        writer.unfinished |= {request.rollout_id: request for request in given}
        writer.streaming, writer.closed = True, not more
        self._streams += 1
        batch, number = self._batch, self._batch.number
        stream = writer.handle.generate.remote(given, batch.sampling, batch.record, more, number)
        arrived = partial(self._arrived, number, writer)
        self.watch.read(stream, arrived, partial(self._ended, number, writer))

    def _close_all(self) -> None:
        """Tell every actor that has a stream open that no more requests come.

        Not before all rollouts are there: until then one that dies may bring requests back.
        """
        for writer in self._writers.all():
            if writer.streaming and not writer.closed:
                writer.closed = True
                writer.handle.add.remote([], False, self._batch.number)


def run_sampling(rollout: RolloutSettings) -> Sampling:
    """How a run's rollouts are sampled."""
    return Sampling(rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_new_tokens)
