"""Rollout actors that give no sign of life, and those that do not come up; plain objects."""

from __future__ import annotations

from typing import Any

import pytest
from rollout_bench import NAMES, Bench

from opd_ray.errors import ActorFailure, ActorLost


def test_an_engine_that_gives_no_sign_of_life_is_ended_and_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(max_in_flight=8, answer_timeout_s=300.0)
    first, second = bench.engines
    bench.start(4)
    bench.let_time_pass(2)
    bench.item_of(second)
    assert bench.watch.buried == []
    bench.let_time_pass(1)  # the second look at which the first has nothing new
    assert bench.watch.buried == ["rollout-0"]
    assert bench.watch.started[0].name == "rollout-0"
    bench.watch.streams = [one for one in bench.watch.streams if one[0].engine is not first]
    bench.go_on()
    assert sorted(bench.found) == NAMES[:4]
    assert capsys.readouterr().err == (
        "opd-ray: rollout-0 hangs (it has answered nothing for longer than "
        "rollout.answer_timeout_s = 300 s); 2 rollouts are written again; starting it again "
        "(1 of rollout.max_restarts = 1)\n"
    )


def test_looks_come_twice_within_the_limit() -> None:
    bench = Bench(answer_timeout_s=300.0)
    bench.start(4)
    assert [seconds for seconds, _ in bench.watch.timers] == [150.0, 150.0]


def test_a_sign_of_life_is_enough() -> None:
    bench = Bench(engines=1, max_in_flight=8, answer_timeout_s=300.0)
    bench.start(1)
    (_, call, _), *_ = bench.watch.streams
    for _ in range(10):
        bench.let_time_pass(1)
        call([])
    assert bench.watch.buried == []
    assert bench.found == []
    bench.go_on()
    assert bench.found == ["a0"]


def test_who_has_nothing_to_do_need_not_answer() -> None:
    bench = Bench(engines=1, max_in_flight=8, answer_timeout_s=300.0)
    bench.start(1)
    bench.go_on()
    bench.let_time_pass(10)
    assert bench.watch.buried == []
    assert bench.watch.timers == []


def test_without_a_limit_nobody_is_looked_after() -> None:
    bench = Bench(answer_timeout_s=None)
    bench.start(4)
    assert bench.watch.timers == []


def test_a_successor_that_does_not_come_up_in_time_is_ended() -> None:
    bench = Bench(engines=1, max_in_flight=8, max_restarts=1)
    bench.start(1)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    assert [seconds for seconds, _ in bench.watch.timers] == [600.0]
    with pytest.raises(ActorFailure, match="did not come up within cluster.start_timeout_s = 600"):
        bench.let_time_pass(1)


def test_a_successor_that_came_up_in_time_is_left_alone() -> None:
    bench = Bench(engines=1, max_in_flight=8, max_restarts=1)
    bench.start(1)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    bench.hear_of(bench.watch.started[0], "loaded")
    bench.let_time_pass(1)
    assert bench.watch.buried == ["rollout-0"]
    bench.go_on()
    assert bench.found == ["a0"]


def test_who_has_been_given_nothing_since_a_batch_was_given_up_owes_no_answer() -> None:
    bench = Bench(answer_timeout_s=40.0)
    first, second = bench.engines
    bench.start(4)
    bench.item_of(first)
    bench.pool.abandon()
    bench.let_time_pass(4)
    assert bench.watch.buried == []
    bench.start(2)  # and from now on they owe one again
    bench.let_time_pass(3)
    assert sorted(bench.watch.buried) == [first.name, second.name]


def test_who_was_asked_in_a_wait_that_was_left_owes_no_answer_either() -> None:
    """As where a trainer dies while all take in its weights: none of them hangs."""
    bench = Bench(answer_timeout_s=40.0)

    def die(ref: Any, owner: str) -> None:
        raise ActorLost("trainer-0", "trainer-0", "killed")

    bench.watch.get = die
    with pytest.raises(ActorLost):
        bench.pool.call_transport("load", 1)
    bench.pool.abandon()
    bench.let_time_pass(4)
    assert bench.watch.buried == []
