"""Rollout actors that die, at every moment; the actors are plain objects."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from rollout_bench import NAMES, Bench, given, requests

from opd_ray.errors import ActorFailure
from opd_ray.types import Sampling


def test_what_a_dead_actor_had_goes_to_the_living_at_once_and_first() -> None:
    bench = Bench(max_in_flight=4)
    first, second = bench.engines
    bench.start(12)
    assert given(second) == ["b0", "b1", "b2", "b3"]
    first.die()
    bench.hear_of(first)
    bench.item_of(second)
    # Before those that nobody had been given yet.
    assert given(second) == ["b0", "b1", "b2", "b3", "a0"]
    bench.go_on()
    assert sorted(bench.found) == NAMES
    assert bench.pool.take_counts() == (1, 4)
    assert bench.pool.take_counts() == (0, 0)


def test_an_idle_actor_takes_over_though_it_had_written_all_its_own() -> None:
    bench = Bench(max_in_flight=8)
    first, second = bench.engines
    bench.start(4)
    bench.item_of(second)
    bench.item_of(second)
    first.die()
    bench.hear_of(first)
    assert given(second) == ["a2", "a3", "a0", "a1"]
    bench.go_on()
    assert sorted(bench.found) == NAMES[:4]


@pytest.mark.parametrize("stream_first", [True, False])
def test_a_death_counts_once_whoever_tells_of_it_first(stream_first: bool) -> None:
    bench = Bench(engines=3, max_in_flight=8)
    first, *others = bench.engines
    bench.start(12)
    bench.item_of(first)  # one of its four is written
    assert len(bench.found) == 1
    first.die()
    tell = [lambda: bench.item_of(first), lambda: bench.hear_of(first)]
    for one in tell if stream_first else reversed(tell):
        one()
    bench.item_of(first)  # the end of its stream
    assert bench.pool.take_counts() == (1, 3)
    assert [len(given(engine)) for engine in others] == [6, 5]
    bench.go_on()
    assert sorted(bench.found) == NAMES


def test_what_comes_late_of_a_dead_actor_is_not_delivered() -> None:
    bench = Bench(max_in_flight=8)
    first, _ = bench.engines
    bench.start(4)
    late = [bench.script.write(request, 0) for request in first.given]
    (_, call, ended), *_ = bench.watch.streams
    first.die()
    bench.hear_of(first)
    call(late)
    ended()
    assert bench.found == []
    bench.go_on()
    assert sorted(bench.found) == NAMES[:4]


def test_two_die_at_once_and_the_third_writes_for_all() -> None:
    bench = Bench(engines=3, max_in_flight=12, max_restarts=0)
    first, second, third = bench.engines
    bench.start(12)
    for engine in (first, second):
        engine.die()
    for engine in (first, second):
        bench.hear_of(engine)
    assert sorted(given(third)) == NAMES
    bench.go_on()
    assert sorted(bench.found) == NAMES
    # Two of the first one's went to the second, which was dead by then.
    assert bench.pool.take_counts() == (0, 4 + 6)


def test_with_nobody_left_the_requests_wait_for_the_successor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(engines=1, max_in_flight=4)
    bench.start(6)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    (successor,) = bench.watch.started
    assert given(successor) == []
    assert bench.pool.living() == []
    bench.hear_of(successor, "loaded")
    assert given(successor) == NAMES[:4]
    assert bench.pool.living() == [("rollout-0", successor)]
    bench.go_on()
    assert sorted(bench.found) == NAMES[:6]
    assert capsys.readouterr().err == (
        "opd-ray: rollout-0 died (killed); 4 rollouts are written again; starting it again "
        "(1 of rollout.max_restarts = 1)\n"
    )


def test_a_successor_joins_a_batch_that_is_being_written() -> None:
    bench = Bench(max_in_flight=2)
    first, second = bench.engines
    bench.start(12)
    first.die()
    bench.hear_of(first)
    (successor,) = bench.watch.started
    bench.hear_of(successor, "loaded")
    assert given(successor) == ["a0", "a1"]
    bench.go_on()
    assert sorted(bench.found) == NAMES
    assert len(given(second)) + len(given(successor)) == 12


def test_a_successor_that_dies_while_it_comes_up_counts_too() -> None:
    bench = Bench(engines=1, max_in_flight=4, max_restarts=2)
    bench.start(4)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    bench.watch.started[0].die()
    bench.hear_of(bench.watch.started[0])
    bench.hear_of(bench.watch.started[0], "loaded")  # says the same, once more
    assert len(bench.watch.started) == 2
    bench.go_on()
    assert sorted(bench.found) == NAMES[:4]
    assert bench.pool.take_counts() == (2, 4)


def test_a_successor_that_was_given_to_a_dead_node_takes_no_start_from_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(engines=1, max_in_flight=4)
    bench.start(4)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    for number in range(2):  # more often than rollout.max_restarts
        successor = bench.watch.started[number]
        successor.never_ran = True
        successor.die()
        bench.hear_of(successor)
    bench.go_on()
    assert sorted(bench.found) == NAMES[:4]
    assert bench.pool.take_counts() == (1, 4)
    assert capsys.readouterr().err.count("was given to a node that is dead") == 2


def test_the_last_one_without_a_start_left_ends_the_run() -> None:
    bench = Bench(max_restarts=0)
    first, second = bench.engines
    bench.start(4)
    first.die()
    bench.hear_of(first)
    second.die()
    with pytest.raises(
        ActorFailure,
        match="rollout-1 failed: killed; no rollout actor is left, and rollout.max_restarts = 0 "
        "allows no further start; start anew",
    ):
        bench.hear_of(second)


def test_one_that_may_not_be_started_again_is_done_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(max_restarts=0)
    bench.start(4)
    bench.engines[0].die()
    bench.go_on()
    assert sorted(bench.found) == NAMES[:4]
    assert "it is not started again: rollout.max_restarts = 0 allows" in capsys.readouterr().err


def test_a_death_between_two_batches_is_survived() -> None:
    bench = Bench(max_in_flight=8)
    bench.start(4)
    bench.go_on()
    bench.engines[1].die()
    bench.hear_of(bench.engines[1])
    bench.found.clear()
    bench.start(4)
    assert len(given(bench.engines[0])) == 2 + 4
    bench.go_on()
    assert sorted(bench.found) == NAMES[:4]


def test_responses_of_an_evaluation_are_written_elsewhere() -> None:
    bench = Bench(max_in_flight=8)
    first, second = bench.engines
    written = bench.pool.write(requests(12), Sampling())
    found = [next(written).rollout_id]
    first.die()
    found += [rollout.rollout_id for rollout in written]
    assert sorted(found) == NAMES
    assert bench.pool.take_counts()[0] == 1
    assert second.given


def test_rollouts_whose_data_died_with_their_actor_are_written_again() -> None:
    bench = Bench(max_in_flight=8)
    first, second = bench.engines
    asked: list[list[str]] = []

    def lost(ids: list[str]) -> list[str]:
        asked.append(sorted(ids))
        return ["a0"]  # a teacher has read the other

    bench.start(6, lost)
    (written,) = [one for one, _, _ in bench.watch.streams if one.engine is first]
    while len(written.open) > 1:
        bench.item_of(first)
    before = set(bench.found)
    first.die()
    bench.hear_of(first)
    assert asked == [sorted(before)]
    left = ({"a0", "a1", "a2"} - before) | {"a0"}
    assert given(second) == ["a3", "b0", "b1", *sorted(left)]
    bench.go_on()
    assert sorted(set(bench.found)) == NAMES[:6]
    assert len(bench.found) == 6 + ("a0" in before)


def test_lost_data_is_found_missing_when_all_streams_have_ended() -> None:
    bench = Bench(max_in_flight=8)
    bench.start(4)
    bench.go_on()
    bench.pool.write_again(["a3", "a0"])
    assert bench.pool.busy
    assert [given(engine)[2:] for engine in bench.engines] == [["a0"], ["a3"]]
    bench.go_on()
    assert sorted(bench.found) == ["a0", "a0", "a1", "a2", "a3", "a3"]
    assert bench.pool.take_counts() == (0, 2)


def test_lost_data_is_found_missing_while_streams_end() -> None:
    bench = Bench(engines=1, max_in_flight=8)
    (engine,) = bench.engines
    bench.start(2)
    bench.item_of(engine)
    bench.item_of(engine)  # has heard that no more come, and has not ended its stream
    bench.pool.write_again(["a0"])
    assert given(engine) == ["a0", "a1"]
    bench.item_of(engine)
    assert given(engine) == ["a0", "a1", "a0"]
    bench.go_on()
    assert sorted(bench.found) == ["a0", "a0", "a1"]


def test_data_found_missing_at_a_death_after_the_batch_holds_up_the_next() -> None:
    bench = Bench(max_in_flight=8)
    bench.start(4, lambda ids: ["a0"] if "a0" in ids else [])
    bench.go_on()
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    assert given(bench.engines[1])[2:] == ["a0"]
    bench.start(4)
    assert sorted(bench.found) == ["a0", "a0", "a1", "a2", "a3"]
    bench.go_on()
    assert len(bench.found) == 5 + 4


def test_all_that_are_left_are_ended_those_that_come_up_too() -> None:
    bench = Bench(engines=3)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    bench.pool.end()
    assert bench.watch.buried == ["rollout-0", "rollout-1", "rollout-2", "rollout-0"]
    assert bench.pool.living() == []


@pytest.mark.parametrize("order", range(30))
def test_whoever_dies_whenever_every_rollout_comes_once(order: int) -> None:
    draw = Random(order)
    bench = Bench(engines=3, max_in_flight=draw.randint(1, 5), max_restarts=20)
    bench.watch._order = draw
    for _ in range(3):
        bench.found.clear()
        bench.start(12)
        while bench.pool.busy:
            if draw.random() < 0.1:
                draw.choice(list(bench.watch.current.values())).die()
            bench.watch.turn("rollouts")
        assert sorted(bench.found) == NAMES


def test_what_an_actor_wrote_before_a_batch_was_given_up_is_not_written_again() -> None:
    bench = Bench()
    first, _ = bench.engines
    asked: list[Any] = []
    bench.start(4, lost=lambda ids: asked.append(ids) or ids)
    bench.item_of(first)
    bench.pool.abandon()
    first.die()
    bench.hear_of(first)
    assert asked == []
    assert not bench.pool.busy
    assert len(bench.watch.started) == 1  # it is replaced all the same
