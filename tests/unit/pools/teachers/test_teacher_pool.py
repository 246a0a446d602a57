"""The pool of teacher replicas, with replicas that are plain objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_replicas import (
    FakeReplica,
    answer_all,
    collect,
    make_kept_pool,
    make_pool,
    pending,
    pool_of,
    rollout,
    sent,
)

from actors.teacher.protocol import TeacherError
from opd_ray.pools.teachers.queue import Task
from opd_ray.types import Rollout


def ids(scores) -> list[str]:
    return [score.rollout_id for score in scores]


def run_soon(watch) -> None:
    while watch.soonest:
        watch.soonest.popleft()()


def written(name: str, mask: list[int]) -> Rollout:
    """A rollout of 4 prompt tokens, its response tokens numbered from 0."""
    whole = rollout(name, tokens=8)
    zero = np.zeros(len(mask), np.float32)
    return replace(
        whole,
        response_ids=np.arange(len(mask), dtype=np.int32),
        response_mask=np.array(mask, np.uint8),
        entropy=zero,
        logprob=zero,
    )


@pytest.mark.parametrize(
    ("mask", "read", "rows"),
    [
        ([1, 1, 1], [0, 1, 2], None),
        ([0, 1, 1, 0, 1], [0, 1, 2, 3, 4], [1, 2, 4]),
        ([1, 0, 1, 0, 0], [0, 1, 2], [0, 2]),  # behind the last row nothing need be read
        ([1, 1, 0], [0, 1], None),
        ([0, 0, 1], [0, 1, 2], [2]),
    ],
)
def test_a_teacher_is_asked_about_what_the_student_wrote(mask, read, rows):
    task = Task.of(written("a", mask), None, now=0.0)
    assert task.request.response_ids.tolist() == read
    assert (None if task.request.rows is None else task.request.rows.tolist()) == rows
    assert task.request.asked.tolist() == np.flatnonzero(mask).tolist()
    assert task.request.student_topk == "ref"
    assert task.tokens == 4 + len(read)


def test_a_rollout_in_which_the_student_wrote_nothing_is_no_task():
    for mask in ([0, 0], []):
        with pytest.raises(TeacherError, match="rollout 'a': the student wrote no token"):
            Task.of(written("a", mask), None, now=0.0)


def test_a_pool_that_shares_cores_with_the_writers_waits_for_their_end():
    replica = FakeReplica("teacher 0")
    pool, watch, _ = pool_of([replica], batch_tokens=1000, after_writing=True)
    pool.deliver = lambda score: None
    for step in range(2):
        pool.writing(True)
        for name in "abc":
            pool.submit(rollout(f"{name}{step}"))
            run_soon(watch)
        assert len(replica.batches) == step
        pool.writing(False)
        run_soon(watch)
        assert replica.batches[step:] == [[f"a{step}", f"b{step}", f"c{step}"]]
        collect(pool, sent(pool)[0])


def test_what_trainers_ask_for_is_scored_again_while_others_are_written():
    first, second = FakeReplica("teacher 0"), FakeReplica("teacher 1")
    pool, _, _ = pool_of([first, second], batch_tokens=1000, after_writing=True)
    pool.deliver = lambda score: None
    pool.submit(rollout("a"))
    pool.pump()
    collect(pool, sent(pool)[0])
    pool.writing(True)
    first.die()
    pool.take([{"a": np.array([0], np.int32)}])
    assert second.batches == [["a"]]


def test_other_pools_do_not_wait():
    pool, [replica], _ = make_pool(1)
    pool.writing(True)
    pool.submit(rollout("a"))
    pool.pump()
    assert replica.batches == [["a"]]


def test_a_free_replica_takes_what_is_there_and_batches_grow_under_load():
    pool, [replica], _ = make_pool(1)
    pool.submit(rollout("a"))
    pool.pump()
    assert replica.batches == [["a"]]
    for name in "bcd":
        pool.submit(rollout(name))
        pool.pump()
    # Busy, and what waits would not fill a batch: it keeps growing.
    assert replica.batches == [["a"]]
    assert ids(collect(pool, sent(pool)[0])) == ["a"]
    pool.pump()
    assert replica.batches == [["a"], ["b", "c", "d"]]


def test_a_busy_replica_gets_a_second_batch_only_when_it_is_full():
    pool, [replica], _ = make_pool(1, batch_tokens=30)
    for number in range(12):
        pool.submit(rollout(f"r{number}"))
        pool.pump()
    # One alone at once, then two full batches would be ready, but only one more may be out.
    assert [len(batch) for batch in replica.batches] == [1, 3]
    assert len(pool._queue) == 8
    assert len(sent(pool)) == 2
    collect(pool, sent(pool)[0])
    pool.pump()
    assert [len(batch) for batch in replica.batches] == [1, 3, 3]


def test_free_replicas_share_the_queue():
    pool, replicas, _ = make_pool(3)
    for number in range(9):
        pool.submit(rollout(f"r{number}"))
    pool.pump()
    assert [r.batches for r in replicas] == [
        [["r0", "r1", "r2"]],
        [["r3", "r4", "r5"]],
        [["r6", "r7", "r8"]],
    ]


def test_a_rollout_above_the_budget_goes_alone():
    pool, [replica], _ = make_pool(1, batch_tokens=30)
    pool.submit(rollout("long", 200))
    pool.submit(rollout("short"))
    pool.pump()
    assert replica.batches == [["long"]]


def test_a_slow_replica_gets_less():
    pool, [quick, slow], _ = make_pool(2, batch_tokens=20)
    for number in range(40):
        pool.submit(rollout(f"r{number}"))
    pool.pump()
    answer_all(pool, quick)
    # The slow one never answered: it holds the two batches it may have, the quick one did the rest.
    assert len(slow.batches) == 2
    assert sum(len(batch) for batch in quick.batches) == 36
    assert pool.stats().tokens_by_replica == {"teacher 0": 360, "teacher 1": 0}


def test_the_least_loaded_replica_comes_first():
    pool, [first, second], _ = make_pool(2, batch_tokens=100)
    pool.submit(rollout("long", 90))
    pool.submit(rollout("short", 10))
    pool.pump()
    assert (first.batches, second.batches) == ([["long"]], [["short"]])
    for number in range(10):
        pool.submit(rollout(f"r{number}", 10))
    pool.pump()
    assert len(first.batches) == 1
    assert len(second.batches[1]) == 10


def test_teacher_prompt_replaces_the_students():
    pool, [replica], _ = make_pool(1)
    pool.submit(rollout("a"), np.array([7, 8, 9], np.int32))
    pool.submit(rollout("b"))
    pool.pump()
    np.testing.assert_array_equal(replica.prompts["a"], [7, 8, 9])
    assert len(replica.prompts["b"]) == 5


def scored_pool(count: int = 2):
    """Four rollouts scored, two on each of two replicas."""
    pool, replicas, _ = make_pool(count)
    for name in "abcd":
        pool.submit(rollout(name))
    pool.pump()
    for ref in sent(pool):
        collect(pool, ref)
    assert [r.held for r in replicas] == [{"a", "b"}, {"c", "d"}]
    return pool, replicas


def test_take_asks_each_replica_for_its_own():
    pool, replicas = scored_pool()
    rows = np.array([0], np.int32)
    none = np.zeros(0, np.int32)
    [refs] = pool.take([{"a": rows, "c": rows, "d": none}])
    assert refs == [("teacher 0", ["a"]), ("teacher 1", ["c"])]
    assert (pool.stats().signal_rows, pool.stats().signal_bytes) == (2, 200)
    assert [r.held for r in replicas] == [{"b"}, set()]  # d kept nothing: forgotten
    for gone in "acd":
        with pytest.raises(TeacherError, match="not known"):
            pool.take([{gone: rows}])
    assert pool.take([{"b": rows}]) == [[("teacher 0", ["b"])]]


def test_a_look_leaves_everything_in_place():
    pool, replicas = scored_pool()
    rows = np.array([0], np.int32)
    pool.take([{"a": rows, "c": np.zeros(0, np.int32)}], forget=False)
    assert replicas[0].taken == [(["a"], False)]
    assert [r.held for r in replicas] == [{"a", "b"}, {"c", "d"}]
    [refs] = pool.take([{"a": rows, "c": rows}])
    assert len(refs) == 2


def test_drop_reaches_rollouts_wherever_they_are():
    pool, [replica], _ = make_pool(1, batch_tokens=20)
    for name in "abcdef":
        pool.submit(rollout(name))
    pool.pump()
    assert replica.batches == [["a", "b"], ["c", "d"]]
    first, second = sent(pool)
    collect(pool, first)
    pool.drop(["a", "c", "e"])  # held, being scored, queued
    assert replica.held == {"b"}
    assert ids(collect(pool, second)) == ["d"]
    assert replica.held == {"b", "d"}
    pool.pump()
    assert replica.batches[-1] == ["f"]
    with pytest.raises(TeacherError, match="'c' is not with the teachers"):
        pool.drop(["c"])


def test_misuse_is_refused():
    pool, _, _ = make_pool(1)
    pool.submit(rollout("a"))
    with pytest.raises(TeacherError, match="'a' was submitted twice"):
        pool.submit(rollout("a"))
    with pytest.raises(TeacherError, match="no record of the student's top-K"):
        pool.submit(rollout("b", topk=None))
    with pytest.raises(TeacherError, match="'a' has no signal at a teacher: it is still queued"):
        pool.take([{"a": np.array([0])}])


def test_answers_for_other_rollouts_are_refused():
    pool, [replica], _ = make_pool(1)
    pool.submit(rollout("a"))
    pool.pump()
    replica.batches[0] = ["b"]
    with pytest.raises(TeacherError, match=r"teacher 0 answered for \['b'\]; asked were \['a'\]"):
        collect(pool, sent(pool)[0])


def test_account():
    pool, [replica], clock = make_pool(1, batch_tokens=40)
    pool.submit(rollout("a"))
    clock.now = 2.0
    pool.submit(rollout("b"))
    clock.now = 3.0
    pool.pump()
    clock.now = 8.0
    before = pool.stats()
    assert (before.busy_seconds, len(sent(pool)), before.scored_tokens) == (5.0, 1, 0)
    collect(pool, sent(pool)[0])
    clock.now = 20.0
    stats = pool.stats()
    assert (stats.waiting_seconds, stats.longest_wait_seconds) == (4.0, 3.0)
    assert (stats.busy_seconds, stats.batches, stats.batch_fill) == (5.0, 1, 0.5)
    assert (replica.batches, stats.scored_tokens) == ([["a", "b"]], 20)
    assert stats.tokens_by_replica == {"teacher 0": 20}
    assert (stats.waited_rollouts, stats.longest_queue_tokens, stats.replicas) == (2, 20, 1)


def test_an_account_opened_anew_counts_what_is_under_way_from_then_on():
    pool, _, clock = make_pool(1, batch_tokens=40)
    pool.submit(rollout("a"))
    pool.pump()
    clock.now = 5.0
    pool.submit(rollout("b", 6))
    pool.open_account()
    clock.now = 7.0
    stats = pool.stats()
    assert (stats.busy_seconds, stats.batches, stats.longest_queue_tokens) == (2.0, 0, 6)
    collect(pool, sent(pool)[0])
    stats = pool.stats()
    assert (stats.scored_tokens, stats.batch_fill, stats.longest_wait_seconds) == (10, 0.0, 0.0)


def test_a_thousand_rollouts_leave_nothing_behind():
    pool, replicas, _ = make_pool(2, batch_tokens=55)
    rng = np.random.default_rng(0)
    rows = np.array([0], np.int32)
    for step in range(50):
        names = [f"{step}/{i}" for i in range(20)]
        for name in names:
            pool.submit(rollout(name, int(rng.integers(2, 40))))
            pool.pump()
        found = []
        while sent(pool):
            pending = sent(pool)
            found += ids(collect(pool, pending[rng.integers(len(pending))]))
            pool.pump()
        assert sorted(found) == sorted(names)
        pool.take([dict.fromkeys(names[:12], rows)])
        pool.drop(names[12:])
        assert not any(replica.held for replica in replicas)
    assert not pool._tasks
    assert sum(len(batch) for r in replicas for batch in r.batches) == 1000


def test_what_is_given_up_is_forgotten_everywhere_and_may_come_again():
    pool, [first, second], _ = make_pool(2, batch_tokens=10)
    for name in "abcdef":
        pool.submit(rollout(name))
    pool.pump()
    collect(pool, sent(pool)[0])  # one is held, the others are being scored or wait
    assert first.held == {"a"}
    pool.abandon()
    assert not any(name in pool for name in "abcdef")
    assert first.held == second.held == set()
    late = sent(pool)
    for name in "ab":
        pool.submit(rollout(name))
    pool.pump()
    # What was under way when it was given up is delivered to nobody, and is no load any more.
    assert [score for ref in late for score in collect(pool, ref)] == []
    found = [score.rollout_id for ref in sent(pool) for score in collect(pool, ref)]
    assert sorted(found) == ["a", "b"]
    pool.take([{"a": np.arange(5), "b": np.arange(5)}])
    assert first.held == second.held == set()


def test_what_is_given_up_is_not_asked_again_where_its_replica_dies():
    pool, [first, second], watch = make_kept_pool(2, batch_tokens=10)
    for name in "abcd":
        pool.submit(rollout(name))
    pool.pump()
    asked = [list(first.batches), list(second.batches)]
    pool.abandon()
    first.die()
    while any(ref[0] is first for ref in pending(pool)):
        watch.arrive(next(ref for ref in pending(pool) if ref[0] is first))
    (successor,) = watch.started
    pool.pump()
    assert [first.batches, second.batches, successor.batches] == [*asked, []]


def test_who_was_asked_in_a_wait_that_was_left_owes_no_answer():
    """As where a trainer dies while replicas hand out rows: none of them hangs."""
    pool, _, watch = make_kept_pool(1)
    pool.submit(rollout("a"))
    pool.pump()
    collect(pool, sent(pool)[0])
    get, watch.get = watch.get, None
    with pytest.raises(TypeError):
        pool.take([{"a": np.arange(2)}])
    watch.get = get
    (replica,) = pool._replicas
    assert replica.owes == 1
    pool.abandon()
    assert replica.owes == 0
