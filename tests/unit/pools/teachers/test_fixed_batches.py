"""Batches that no clock decides: in whatever order rollouts come, and whoever dies."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from fake_replicas import FakeReplica, FakeWatch, collect, pool_of, rollout, sent

from opd_ray.pools.teachers.fixed_batches import FixedBatches
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.teachers.queue import Task

ROW = np.array([0], np.int32)


def pool_for(
    count: int, batch_tokens: int = 1000, max_restarts: int = 0
) -> tuple[TeacherPool, list[FakeReplica], FakeWatch]:
    replicas = [FakeReplica(f"teacher {number}") for number in range(count)]
    pool, watch, _ = pool_of(replicas, batch_tokens, max_restarts, fixed=True)
    return pool, replicas, watch


def scores_of(pool: TeacherPool, watch: FakeWatch, count: int) -> list[str]:
    found: list[str] = []
    pool.deliver = lambda scores: found.append(scores.rollout_id)
    watch.wait_until(lambda: len(found) == count, "scores")
    return found


def asked(*replicas: FakeReplica) -> list[str]:
    return ["".join(batch) for replica in replicas for batch in replica.batches]


@pytest.mark.parametrize("order", range(6))
def test_batches_are_the_same_in_whatever_order_rollouts_come(order: int) -> None:
    pool, replicas, watch = pool_for(2, batch_tokens=25)
    pool.expect("abcdefghij")
    names = list("abcdefghij")
    Random(order).shuffle(names)
    for name in names:
        pool.submit(rollout(name, tokens={"b": 20, "h": 30}.get(name, 10)))
        pool.pump()
    scores_of(pool, watch, 10)
    # Four groups at most, of three: 10 and 20 are too many, so are 10, 10, 10, and 30 alone is.
    assert sorted(asked(*replicas)) == ["a", "b", "c", "de", "f", "g", "h", "i", "j"]


def test_a_batch_waits_for_all_of_its_group_and_for_no_other() -> None:
    pool, [replica], _ = pool_for(1)
    pool.expect("abcd")
    for name in "dba":
        pool.submit(rollout(name))
        pool.pump()
    assert asked(replica) == ["ab"]
    pool.submit(rollout("c"))
    pool.pump()
    assert asked(replica) == ["ab", "cd"]


def test_a_rollout_with_nothing_to_score_is_not_waited_for() -> None:
    pool, [replica], _ = pool_for(1)
    pool.expect("abcd")
    pool.submit(rollout("b"))
    pool.skip("a")
    pool.skip("c")
    pool.skip("d")
    pool.pump()
    assert asked(replica) == ["b"]


def test_what_was_announced_and_never_came_is_forgotten_with_the_next_announcement() -> None:
    pool, [replica], _ = pool_for(1)
    pool.expect("abcd")
    pool.submit(rollout("a"))
    pool.expect("ef")
    pool.submit(rollout("f"))
    pool.submit(rollout("e"))
    pool.pump()
    assert sorted(asked(replica)) == ["e", "f"]
    assert pool._queue.tokens == 0


def test_a_dead_replicas_batches_are_asked_again_as_they_were() -> None:
    pool, [first, second], watch = pool_for(2)
    pool.expect("abcdefgh")
    for name in "hgfedcba":
        pool.submit(rollout(name))
    pool.pump()
    assert (asked(first), asked(second)) == (["gh", "cd"], ["ef", "ab"])
    collect(pool, (first, "score", 0))  # held there; "cd" is being scored
    first.die()
    assert scores_of(pool, watch, 6) == list("efabcd")
    pool.take([dict.fromkeys("abcdefgh", ROW)])
    assert asked(second) == ["ef", "ab", "cd", "gh"]
    assert not second.held
    assert not pool._tasks


@pytest.mark.parametrize("how", ["taken", "dropped"])
def test_those_that_nobody_wants_any_more_are_read_again_with_the_others(how: str) -> None:
    pool, [first, second], watch = pool_for(2)
    pool.expect("abcdefgh")
    for name in "abcdefgh":
        pool.submit(rollout(name))
    pool.pump()
    scores_of(pool, watch, 8)
    assert asked(first) == ["ab", "ef"]
    if how == "taken":
        pool.take([{"a": ROW}])
    else:
        pool.drop("a")
    first.die()
    [refs] = pool.take([{"b": ROW}])
    assert refs == [("teacher 1", ["b"])]
    # Whole and as it was; of "a" nothing stays, "e" and "f" are wanted again.
    assert asked(second) == ["cd", "gh", "ab", "ef"]
    scores_count = len(pool._tasks)
    pool.drop("cdefgh")
    watch.wait_until(lambda: not sent(pool), "the last batch")
    assert (scores_count, second.held) == (6, set())
    assert not pool._tasks


def test_a_batch_of_which_nothing_is_wanted_is_not_asked_again() -> None:
    pool, [first, second], watch = pool_for(2)
    pool.expect("abcd")
    for name in "abcd":
        pool.submit(rollout(name))
    pool.pump()
    scores_of(pool, watch, 4)
    assert asked(first, second) == ["a", "c", "b", "d"]
    pool.drop("c")
    first.die()
    pool.take([{"a": ROW}])
    assert asked(second) == ["b", "d", "a"]


def test_what_is_dropped_before_it_is_asked_keeps_its_place() -> None:
    pool, [replica], watch = pool_for(1)
    pool.expect("abcd")
    pool.submit(rollout("a"))
    pool.drop("a")
    pool.submit(rollout("b"))
    pool.pump()
    assert asked(replica) == ["ab"]
    assert scores_of(pool, watch, 1) == ["b"]
    assert replica.held == {"b"}


def test_tokens_that_wait_are_counted() -> None:
    queue = FixedBatches(batch_tokens=100, groups=2)
    queue.expect("abc")
    one, two, three = (
        Task.of(rollout(name, tokens), None, 0.0)
        for name, tokens in (("a", 10), ("b", 20), ("c", 40))
    )
    queue.append(three)
    queue.append(two)
    assert (queue.tokens, len(queue)) == (60, 1)
    queue.append(one)
    assert (queue.tokens, len(queue)) == (70, 2)
    assert queue.next_batch(busy=True, free=0) == [three]
    assert (queue.tokens, len(queue)) == (30, 1)
    queue.put_back([three])
    assert (queue.tokens, len(queue)) == (70, 2)
    assert queue.next_batch(busy=False, free=1) == [three]
    assert queue.next_batch(busy=False, free=1) == [one, two]
    assert queue.next_batch(busy=False, free=1) == []
