"""Replicas that owe an answer for too long, and those that come up too late."""

from __future__ import annotations

from fake_replicas import (
    FakeReplica,
    collect,
    make_kept_pool,
    pool_of,
    rollout,
)
from teacher_bench import taken

from opd_ray.errors import ActorDied


def hanging_pool():
    replicas = [FakeReplica(f"teacher {i}") for i in range(2)]
    pool, watch, _ = pool_of(replicas, 100, max_restarts=1, answer_timeout_s=900.0)
    return pool, replicas, watch


def test_a_replica_that_owes_a_batch_for_too_long_is_ended_and_its_rollouts_asked_elsewhere(
    capsys,
) -> None:
    pool, [first, second], watch = hanging_pool()
    pool.submit(rollout("a"))
    pool.submit(rollout("b"))
    pool.pump()
    assert [first.batches, second.batches] == [[["a"]], [["b"]]]
    for _ in range(2):
        watch.let_time_pass()
    assert watch.buried == []
    [score] = collect(pool, (second, "score", 0))
    watch.let_time_pass()
    assert watch.buried == ["teacher 0"]
    assert [one.name for one in watch.started] == ["teacher 0"]
    pool.pump()
    assert second.batches == [["b"], ["a"]]
    assert score.rollout_id == "b"
    assert "teacher 0 hangs (it has answered nothing for longer than teacher.answer" in (
        capsys.readouterr().err
    )


def test_a_replica_without_a_batch_owes_nothing() -> None:
    pool, [first, _], watch = hanging_pool()
    pool.submit(rollout("a"))
    pool.pump()
    collect(pool, (first, "score", 0))
    for _ in range(10):
        watch.let_time_pass()
    assert watch.buried == []
    assert watch.timers == []


def test_a_replica_that_does_not_hand_out_rows_hangs_too() -> None:
    pool, [first, second], watch = hanging_pool()
    pool.submit(rollout("a"))
    pool.pump()
    collect(pool, (first, "score", 0))
    get, ended = watch.get, []

    def wait(ref, name):
        if ref[1] == "take" and ref[0] is first:
            for _ in range(3):
                watch.let_time_pass()
            ended.extend(watch.buried)
            raise ActorDied(name, "killed, as it hangs")
        return get(ref, name)

    watch.get = wait
    assert taken(pool, "a").keys() == {"a"}
    assert ended == ["teacher 0"]
    assert second.batches + watch.started[0].batches == [["a"]]


def test_a_replica_that_came_up_too_late_is_given_nothing() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=1)
    first.die()
    watch.arrive((first, "lifeline", 0))
    [late] = watch.started
    watch.let_time_pass()
    assert watch.buried == ["teacher 0", "teacher 0"]
    watch.arrive((late, "loaded", 0))
    assert pool.living() == [("teacher 1", second)]
