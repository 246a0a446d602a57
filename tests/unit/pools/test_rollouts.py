"""The rollout pool shares a batch by load; the actors are recorders, no Ray is started."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_replicas import FakeWatch, Remote, writers_of

from opd_ray.pools.rollouts import RolloutPool
from opd_ray.types import Rollout, RolloutRequest, Sampling


class _Actor:
    """Records what it was given; its stream brings what it is told to, the oldest first."""

    dead = False

    def __init__(self, *brings: int) -> None:
        self.brings = brings
        self.given: list[RolloutRequest] = []
        self.closed = False
        self.aborted: list[int] = []
        self.abort = Remote(self.aborted.append)
        self.generate = Remote(self._generate)
        self.add = Remote(self._add)

    def _generate(
        self,
        requests: list[RolloutRequest],
        sampling: Sampling,
        record: bool,
        more: bool,
        batch: int,
    ) -> _Stream:
        self.closed = False
        stream = _Stream(self)
        self._add(requests, more, batch)
        return stream

    def _add(self, requests: list[RolloutRequest], more: bool, batch: int) -> None:
        assert not self.closed, "requests came after the end was announced"
        self.given += requests
        self.closed = not more


class _Stream:
    """What an actor brings of one batch."""

    dead = False

    def __init__(self, actor: _Actor) -> None:
        self._brings, self._given = list(actor.brings), actor.given
        self._written = len(actor.given)

    def __next__(self) -> list[Rollout]:
        if not self._brings:
            raise StopIteration
        first, self._written = self._written, self._written + self._brings.pop(0)
        return [_rollout(request.rollout_id) for request in self._given[first : self._written]]


class _Watch(FakeWatch):
    """Reads streams when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[tuple[Any, Any, Any]] = []

    def read(self, stream: Any, call: Any, ended: Any) -> None:
        self.streams.append((stream, call, ended))

    def get(self, ref: Any, owner: str) -> Any:
        return ref

    def next_of(self, number: int) -> None:
        stream, call, ended = self.streams[number]
        try:
            item = next(stream)
        except StopIteration:
            ended()
        else:
            call(item)


def _requests(count: int) -> list[RolloutRequest]:
    prompt = np.zeros(1, dtype=np.int32)
    return [RolloutRequest(f"r{i}", f"p{i // 2}", i % 2, prompt, i) for i in range(count)]


def _rollout(name: str) -> Rollout:
    empty = np.zeros(0)
    return Rollout(name, "p", 0, empty, empty, empty, empty, empty, "stop", 0)


def _pool(actors: list[_Actor], max_in_flight: int, **options: Any) -> tuple[RolloutPool, _Watch]:
    watch = _Watch()
    named = [(f"rollout {i}", actor) for i, actor in enumerate(actors)]
    return writers_of(watch, named, max_in_flight, **options), watch


def _start(pool: RolloutPool, count: int) -> list[Rollout]:
    """Begins a batch; the list that its rollouts will come to."""
    found: list[Rollout] = []
    pool.start(_requests(count), Sampling(), found.extend, record=True)
    return found


def test_a_small_batch_is_split_evenly_at_once() -> None:
    actors = [_Actor(), _Actor()]
    pool, _ = _pool(actors, max_in_flight=8)
    _start(pool, 8)
    assert [len(actor.given) for actor in actors] == [4, 4]
    assert [r.rollout_id for r in actors[0].given + actors[1].given] == [f"r{i}" for i in range(8)]


def test_what_does_not_fit_goes_to_whoever_finishes_first() -> None:
    actors = [_Actor(2, 1), _Actor(1, 1, 1, 1, 1, 1, 1)]
    pool, watch = _pool(actors, max_in_flight=2)
    found = _start(pool, 10)
    assert [len(actor.given) for actor in actors] == [2, 2]
    for count in range(1, 6):
        watch.next_of(1)
        assert len(found) == count
    assert [len(actor.given) for actor in actors] == [2, 7]
    watch.next_of(0)
    assert [len(actor.given) for actor in actors] == [3, 7]


def test_streams_stay_open_until_all_is_written() -> None:
    """One that dies before may bring requests back."""
    actors = [_Actor(2), _Actor(1, 1)]
    pool, watch = _pool(actors, max_in_flight=4)
    found = _start(pool, 4)
    watch.next_of(0)
    watch.next_of(1)
    assert [actor.closed for actor in actors] == [False, False]
    watch.next_of(1)
    assert [actor.closed for actor in actors] == [True, True]
    assert len(found) == 4
    assert pool.busy
    watch.next_of(0)
    assert pool.busy
    watch.next_of(1)
    assert not pool.busy


@pytest.mark.parametrize("faster", [0, 1])
def test_a_fixed_share_is_given_at_once_and_nobody_gets_more(faster: int) -> None:
    actors = [_Actor(1, 1, 1, 1), _Actor(1, 1, 1)]
    pool, watch = _pool(actors, max_in_flight=2, fixed_shares=True)
    found = _start(pool, 7)
    assert all(actor.closed for actor in actors)
    for number in (faster, faster, faster, 1 - faster, 1 - faster, 1 - faster):
        watch.next_of(number)
    watch.next_of(0)
    assert len(found) == 7
    ids = [[request.rollout_id for request in actor.given] for actor in actors]
    assert ids == [["r0", "r1", "r2", "r3"], ["r4", "r5", "r6"]]


def test_fewer_requests_than_actors_leave_some_idle() -> None:
    actors = [_Actor(), _Actor(), _Actor()]
    pool, watch = _pool(actors, max_in_flight=4)
    _start(pool, 2)
    assert [len(actor.given) for actor in actors] == [1, 1, 0]
    assert len(watch.streams) == 2


def test_a_stream_that_ends_early_is_an_error() -> None:
    pool, watch = _pool([_Actor(1)], max_in_flight=4)
    _start(pool, 2)
    watch.next_of(0)
    with pytest.raises(RuntimeError, match="rollout 0 ended its stream with 1 requests unanswered"):
        watch.next_of(0)


def test_a_batch_that_is_given_up_delivers_nothing_more() -> None:
    actors = [_Actor(1, 1, 1), _Actor(1, 1), _Actor()]
    pool, watch = _pool(actors, max_in_flight=1)
    found = _start(pool, 2)  # the third actor has nothing to do
    watch.next_of(0)
    assert len(found) == 1
    pool.abandon()
    assert [actor.aborted for actor in actors] == [[1], [1], []]
    assert not pool.busy
    for number in (0, 1):
        watch.next_of(number)  # what was on the way, and the end of the stream
    again = _start(pool, 2)
    watch.next_of(0)
    watch.next_of(1)
    assert (len(found), len(again)) == (1, 0)
    watch.next_of(2)
    assert len(again) == 1
    assert [len(actor.given) for actor in actors] == [2, 2, 0]
    watch.streams[1][2]()  # the end of a stream that was given up ends no other
    assert pool.busy


def test_requests_that_wait_are_given_up_too() -> None:
    actors = [_Actor(1, 1, 1)]
    pool, watch = _pool(actors, max_in_flight=1)
    _start(pool, 3)
    pool.abandon()
    watch.next_of(0)
    assert len(actors[0].given) == 1
    pool.abandon()  # nothing is left
    assert actors[0].aborted == [1]


def test_a_second_batch_waits_for_the_first() -> None:
    pool, _ = _pool([_Actor()], max_in_flight=4)
    _start(pool, 1)
    with pytest.raises(RuntimeError, match="not all been collected"):
        _start(pool, 1)
