"""Replicas that die at every moment of a rollout's way: the result is as if none had."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fake_replicas import (
    FakeReplica,
    collect,
    is_ready,
    make_kept_pool,
    pending,
    pool_of,
    rollout,
    sent,
)
from teacher_bench import NO_ROW, ROW, drive, submit, taken

from actors.teacher.protocol import TeacherError
from opd_ray.errors import ActorDied, ActorFailure
from opd_ray.pools.teachers.queue import Task, TaskQueue


def test_queued_rollouts_go_to_the_others() -> None:
    pool, [first, second], watch = make_kept_pool(2, batch_tokens=10, max_restarts=0)
    submit(pool, "abcdefgh")
    first.die()
    assert sorted(drive(pool, watch, until=8)) == list("abcdefgh")
    assert sum(map(len, second.batches)) == 8
    assert watch.buried == ["teacher 0"]
    assert pool.living() == [("teacher 1", second)]


def test_batches_in_flight_are_asked_again_first_and_whole() -> None:
    pool, [first, second], watch = make_kept_pool(2, batch_tokens=20, max_restarts=0)
    submit(pool, "abcdefghij")
    assert (first.batches, second.batches) == (
        [["a", "b"], ["e", "f"]],
        [["c", "d"], ["g", "h"]],
    )
    first.die()
    assert drive(pool, watch, until=10) == list("cdghabefij")
    # With the ids and the reference to the student's top-K of the first time.
    assert second.topks == {name: f"top-K of {name}" for name in "abcdefghij"}
    stats = pool.stats()
    assert (stats.retried_rollouts, stats.scored_tokens) == (4, 100)
    assert set(taken(pool, "abcdefghij").values()) == {"teacher 1"}
    assert not second.held


def test_an_answer_that_came_before_the_death_is_not_asked_again_for_its_scores() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    assert [s.rollout_id for s in collect(pool, (first, "score", 0))] == ["a", "b"]
    first.die()
    # Held by the dead one: scored again, and those scores are nobody's business.
    assert drive(pool, watch, until=2) == ["c", "d"]
    assert taken(pool, "abcd") == dict.fromkeys("abcd", "teacher 1")
    assert second.batches == [["c", "d"], ["a", "b"]]
    assert pool.stats().retried_rollouts == 2


def test_a_death_that_shows_when_rows_are_taken() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    drive(pool, watch, until=4)
    first.dies_when_taking = True
    assert taken(pool, "abc") == dict.fromkeys("abc", "teacher 1")
    assert second.batches == [["c", "d"], ["a", "b"]]
    pool.drop("d")
    assert not second.held
    assert not pool._tasks


def test_a_second_look_survives_too_and_leaves_everything_in_place() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    drive(pool, watch, until=4)
    first.dies_when_taking = True
    pool.take([dict.fromkeys("abcd", ROW)], forget=False)
    assert second.held == set("abcd")
    assert taken(pool, "abcd") == dict.fromkeys("abcd", "teacher 1")


def test_rows_that_left_before_the_death_are_not_taken_twice() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    drive(pool, watch, until=4)
    assert taken(pool, "ac") == {"a": "teacher 0", "c": "teacher 1"}
    first.die()
    assert taken(pool, "bd") == dict.fromkeys("bd", "teacher 1")
    assert second.batches == [["c", "d"], ["b"]]


def test_all_are_asked_for_all_trainers_before_the_first_answer_is_waited_for() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    drive(pool, watch, until=4)
    asked = []
    get = watch.get

    def counted(ref, name):
        asked.append(len(first.taken) + len(second.taken))
        return get(ref, name)

    watch.get = counted
    assert pool.take([{"a": ROW, "c": ROW}, {"b": ROW, "d": NO_ROW}, {}]) == [
        [("teacher 0", ["a"]), ("teacher 1", ["c"])],
        [("teacher 0", ["b"])],
        [],
    ]
    assert asked == [3, 3, 3]
    assert not pool._tasks


def test_a_death_between_two_answers_takes_only_what_has_not_come() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    drive(pool, watch, until=4)
    get = watch.get

    def then_die(ref, name):
        found = get(ref, name)
        first.die()
        return found

    watch.get = then_die
    assert pool.take([{"a": ROW}, {"b": ROW, "c": ROW}]) == [
        [("teacher 0", ["a"])],
        [("teacher 1", ["c"]), ("teacher 1", ["b"])],
    ]
    assert second.batches == [["c", "d"], ["b"]]
    assert pool.stats().retried_rollouts == 1
    pool.drop("d")
    assert not second.held
    assert not pool._tasks


def test_rows_that_came_from_a_replica_that_has_died_since_are_not_asked_again() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    drive(pool, watch, until=4)
    get = watch.get

    def bury_too(ref, name):
        found = get(ref, name)
        first.die()
        watch.get = get
        watch.arrive((first, "lifeline", 0))  # the watch deals with it in the same wait
        return found

    watch.get = bury_too
    assert pool.take([{"a": ROW, "b": ROW}]) == [[("teacher 0", ["a", "b"])]]
    pool.pump()
    assert second.batches == [["c", "d"]]
    pool.drop("cd")
    assert not pool._tasks


def test_scores_that_arrive_while_rows_are_taken_are_delivered() -> None:
    pool, [first, _], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    drive(pool, watch, until=4)
    submit(pool, "ef")
    first.dies_when_taking = True
    found: list[str] = []
    pool.deliver = lambda scores: found.append(scores.rollout_id)
    assert taken(pool, "abcd") == dict.fromkeys("abcd", "teacher 1")
    watch.wait_until(lambda: len(found) == 2, "scores")
    assert sorted(found) == ["e", "f"]
    assert taken(pool, "ef") == dict.fromkeys("ef", "teacher 1")
    assert not sent(pool)


def test_dropped_rollouts_are_not_asked_again() -> None:
    pool, [first, second], watch = make_kept_pool(2, batch_tokens=20, max_restarts=0)
    submit(pool, "abcdef")
    collect(pool, (second, "score", 0))
    pool.drop(["a", "e"])  # being scored by the first, and queued or being scored
    first.die()
    assert sorted(drive(pool, watch, until=2)) == ["b", "f"]
    assert "a" not in second.topks
    submit(pool, "a")  # gone without trace, so the name is free
    assert drive(pool, watch, until=1) == ["a"]


def test_a_lone_replica_is_started_again_and_gets_everything() -> None:
    pool, [first], watch = make_kept_pool(1)
    submit(pool, "ab")
    assert drive(pool, watch, until=2) == ["a", "b"]
    submit(pool, "cd")
    first.die()
    assert drive(pool, watch, until=2) == ["c", "d"]
    [new] = watch.started
    assert pool.living() == [("teacher 0", new)]
    assert taken(pool, "abcd") == dict.fromkeys("abcd", "teacher 0")
    assert new.batches == [["c", "d", "a", "b"]]
    assert (pool.stats().restarts, pool.stats().retried_rollouts) == (1, 4)


def test_others_go_on_while_a_replica_comes_up() -> None:
    pool, [first, second], watch = make_kept_pool(2, batch_tokens=10)
    submit(pool, "abcdef")
    first.die()
    assert collect(pool, (first, "lifeline", 0)) == []
    [new] = watch.started
    assert sorted(drive(pool, watch, until=6)) == list("abcdef")
    assert (len(second.batches), new.batches) == (6, [])
    collect(pool, (new, "loaded", 0))
    submit(pool, "gh")
    assert sorted(drive(pool, watch, until=2)) == ["g", "h"]
    assert new.batches


def test_a_replica_that_dies_while_it_loads_has_used_up_a_start() -> None:
    pool, [first], watch = make_kept_pool(1, max_restarts=2)
    watch.stillborn = 1
    submit(pool, "a")
    first.die()
    assert drive(pool, watch, until=1) == ["a"]
    assert (len(watch.started), pool.stats().restarts) == (2, 2)


def test_no_replica_is_started_more_often_than_allowed() -> None:
    pool, [first], watch = make_kept_pool(1, max_restarts=2)
    watch.stillborn = 3
    submit(pool, "a")
    first.die()
    with pytest.raises(ActorFailure, match="no teacher replica is left, and .*max_restarts = 2"):
        drive(pool, watch, until=1)
    assert (len(watch.started), pool.stats().restarts) == (2, 2)


def test_a_death_without_another_start_is_no_restart() -> None:
    pool, [first, _], watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "ab")
    first.die()
    assert sorted(drive(pool, watch, until=2)) == ["a", "b"]
    assert (watch.started, pool.stats().restarts) == ([], 0)


def test_what_a_dead_replica_leaves_counts_in_the_queue_again() -> None:
    queue = TaskQueue(10**6)
    tasks = [Task.of(rollout(name, tokens), None, 0.0) for name, tokens in (("a", 10), ("b", 20))]
    queue.append(tasks[0])
    queue.put_back(tasks[1:])
    assert queue.tokens == sum(task.tokens for task in tasks)
    assert [task.rollout_id for task in queue.next_batch(busy=False, free=1)] == ["b", "a"]


def test_the_run_ends_when_none_is_left() -> None:
    pool, replicas, watch = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    for replica in replicas:
        replica.die()
    pattern = "teacher 1 failed: killed; no teacher replica is left, and teacher.max_restarts = 0"
    with pytest.raises(ActorFailure, match=pattern):
        drive(pool, watch, until=4)
    assert watch.buried == ["teacher 0", "teacher 1"]


def test_a_replica_that_raises_ends_the_run_at_once() -> None:
    pool, [first, _], watch = make_kept_pool(2)
    submit(pool, "abcd")

    def wrong(ref):
        raise ActorFailure("teacher 0", "TeacherError: NaN")

    first.value = wrong
    with pytest.raises(ActorFailure, match="NaN"):
        collect(pool, (first, "score", 0))
    assert not watch.buried


def test_rows_of_what_was_never_delivered_cannot_be_taken() -> None:
    pool, [first, _], _ = make_kept_pool(2, max_restarts=0)
    submit(pool, "abcd")
    first.die()
    collect(pool, (first, "lifeline", 0))
    with pytest.raises(TeacherError, match="'a' has no signal at a teacher: it is still queued"):
        pool.take([{"a": ROW}])


@pytest.mark.parametrize("seed", range(20))
def test_deaths_at_random_change_nothing(seed: int) -> None:
    """Every rollout is delivered once and taken once, and nothing stays behind."""
    rng = np.random.default_rng(seed)
    pool, _, watch = make_kept_pool(3, batch_tokens=40, max_restarts=4)

    def perhaps_kill() -> None:
        alive: list[FakeReplica] = [r for r in watch.current.values() if not r.dead]
        if len(alive) > 1 and rng.random() < 0.1 and len(watch.started) < 4:
            victim = alive[rng.integers(len(alive))]
            if rng.random() < 0.5:
                victim.die()
            else:
                victim.dies_when_taking = True

    for step in range(10):
        names = [f"{step}/{i}" for i in range(20)]
        found: list[str] = []
        for name in names:
            pool.submit(rollout(name, int(rng.integers(2, 30))))
            pool.pump()
            perhaps_kill()
        while len(found) < 20:
            pool.pump()
            ready = list(filter(is_ready, pending(pool)))
            found += [s.rollout_id for s in collect(pool, ready[rng.integers(len(ready))])]
            perhaps_kill()
        assert sorted(found) == sorted(names)
        shares = [names[:4], names[4:9], names[9:15]]
        pool.take([dict.fromkeys(share, ROW) for share in (*shares, names[15:])], forget=False)
        given = pool.take([dict.fromkeys(share, ROW) for share in shares])
        assert [sorted(key for _, keys in refs for key in keys) for refs in given] == [
            sorted(share) for share in shares
        ]
        pool.drop(names[15:])
        assert not pool._tasks
        assert not any(replica.held for replica in watch.current.values())
    assert pool.stats().retried_rollouts > 0


def test_a_rollout_that_was_given_up_and_is_lost_is_not_forgotten_by_who_never_held_it() -> None:
    pool, [first], _ = make_kept_pool(1)
    pool.submit(rollout("a", topk=SimpleNamespace(owner=SimpleNamespace(dead=True))))
    pool.pump()
    pool.drop(["a"])
    assert collect(pool, (first, "score", 0)) == []
    assert "a" not in pool


def test_replicas_that_come_up_begin_anew_and_take_no_start() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=1)
    first.die()
    watch.arrive((first, "lifeline", 0))
    [early] = watch.started
    pool.begin_anew()
    assert watch.buried == ["teacher 0", "teacher 0"]
    [_, late] = watch.started
    early.die()  # as one whose trainers are gone: no failure of the run
    watch.arrive((early, "loaded", 0))
    watch.arrive((late, "loaded", 0))
    assert pool.living() == [("teacher 1", second), ("teacher 0", late)]
    assert pool.stats().restarts == 1
    pool.begin_anew()
    assert len(watch.started) == 2


def test_without_what_it_loads_from_none_is_started() -> None:
    pool, [first, second], watch = make_kept_pool(2, max_restarts=1)
    pool.lose_source()
    first.die()
    watch.arrive((first, "lifeline", 0))
    assert watch.started == []
    pool.submit(rollout("a"))
    pool.pump()
    assert second.batches == [["a"]]
    pool.begin_anew()
    assert [one.name for one in watch.started] == ["teacher 0"]
    watch.arrive((watch.started[0], "loaded", 0))
    assert pool.stats().restarts == 1


def test_one_that_a_dead_node_was_given_starts_when_the_others_are_awake_again() -> None:
    replicas = [FakeReplica(f"teacher {i}") for i in range(2)]
    pool, watch, _ = pool_of(replicas, max_restarts=1, sleeps=True)
    get = watch.get

    def never_ran(ref, name):
        if ref[0] is replicas[0]:
            raise ActorDied(name, "its node is gone", never_ran=True)
        return get(ref, name)

    watch.get = never_ran
    replicas[0].die()
    watch.arrive((replicas[0], "lifeline", 0))
    assert watch.started == []
    pool.wake()
    assert [one.name for one in watch.started] == ["teacher 0"]
