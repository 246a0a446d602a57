"""Rollout actors that die or hang, at every moment; the actors are plain objects."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from fake_replicas import writers_of
from stand_ins import Engine, Response, Script, StandInWatch

from opd_ray.errors import ActorDied, ActorFailure, ActorLost, RunError
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.types import Rollout, RolloutRequest, Sampling

NAMES = [f"{key}{sample}" for key in "abc" for sample in range(4)]
RESPONSES = {
    name: Response(mask=[1] * size, logprob=[-0.1] * size, reverse_kl=[0.1] * size)
    for size, name in enumerate(NAMES, start=1)
}


class Bench:
    """A pool of engines whose events come when the test says so.

    Args:
        engines: how many.
        max_in_flight: requests each has at once.
        max_restarts: of each.
    """

    def __init__(
        self,
        engines: int = 2,
        max_in_flight: int = 2,
        max_restarts: int = 1,
        answer_timeout_s: float | None = None,
    ) -> None:
        self.draw, self.script = Random(0), Script(RESPONSES)
        self.watch: Any = StandInWatch(self.draw)
        self.watch._make = lambda name: Engine(self.script, self.draw, name)
        named = [(f"rollout-{n}", self.watch._make(f"rollout-{n}")) for n in range(engines)]
        self.engines: list[Engine] = [engine for _, engine in named]
        self.pool: RolloutPool = writers_of(
            self.watch, named, max_in_flight, max_restarts, answer_timeout_s
        )
        self.found: list[str] = []

    def start(self, count: int, lost: Callable[[Any], Any] = lambda ids: ()) -> None:
        self.pool.start(requests(count), Sampling(), self._deliver, record=True, lost=lost)

    def _deliver(self, rollouts: list[Rollout]) -> None:
        self.found += [rollout.rollout_id for rollout in rollouts]

    def item_of(self, engine: Engine) -> None:
        """The next item of its stream, or the end."""
        one = next(one for one in self.watch.streams if one[0].engine is engine)
        self.watch._next(one)

    def hear_of(self, engine: Engine, kind: str = "lifeline") -> None:
        """Its lifeline, or that it has loaded."""
        self.watch.arrive((engine, kind, 0))

    def go_on(self) -> None:
        """Until all is written."""
        self.watch.wait_until(lambda: not self.pool.busy, "rollouts")


def requests(count: int) -> list[RolloutRequest]:
    prompt = np.zeros(1, dtype=np.int32)
    return [RolloutRequest(n, n[0], int(n[1]), prompt, 0) for n in NAMES[:count]]


def given(engine: Engine) -> list[str]:
    return [request.rollout_id for request in engine.given]


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


def hanging(bench: Bench, looks: int) -> None:
    for _ in range(looks):
        bench.watch.let_time_pass()


def test_an_engine_that_gives_no_sign_of_life_is_ended_and_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(max_in_flight=8, answer_timeout_s=300.0)
    first, second = bench.engines
    bench.start(4)
    hanging(bench, 2)
    bench.item_of(second)
    assert bench.watch.buried == []
    hanging(bench, 1)  # the second look at which the first has nothing new
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
        hanging(bench, 1)
        call([])
    assert bench.watch.buried == []
    assert bench.found == []
    bench.go_on()
    assert bench.found == ["a0"]


def test_who_has_nothing_to_do_need_not_answer() -> None:
    bench = Bench(engines=1, max_in_flight=8, answer_timeout_s=300.0)
    bench.start(1)
    bench.go_on()
    hanging(bench, 10)
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
        hanging(bench, 1)


def test_a_successor_that_came_up_in_time_is_left_alone() -> None:
    bench = Bench(engines=1, max_in_flight=8, max_restarts=1)
    bench.start(1)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    bench.hear_of(bench.watch.started[0], "loaded")
    hanging(bench, 1)
    assert bench.watch.buried == ["rollout-0"]
    bench.go_on()
    assert bench.found == ["a0"]


class Weights:
    """Brings weights to those that were started again, when the test says so."""

    def __init__(self, pool: RolloutPool, possible: bool = True) -> None:
        self.asked: list[tuple[str, Any, Callable[[bool], object]]] = []
        self.sent: list[Callable[[], object]] = []
        self._possible = possible
        pool.catch_up = self._catch_up

    def _catch_up(
        self, name: str, handle: Any, sent: Callable[[], object], done: Callable[[bool], object]
    ) -> bool:
        self.asked.append((name, handle, done))
        self.sent.append(sent)
        return self._possible


def test_a_successor_writes_nothing_before_it_has_the_weights() -> None:
    bench = Bench(engines=2, max_in_flight=2)
    weights = Weights(bench.pool)
    first, _ = bench.engines
    bench.start(12)
    first.die()
    bench.hear_of(first)
    (successor,) = bench.watch.started
    assert weights.asked == []
    bench.hear_of(successor, "loaded")
    ((name, handle, done),) = weights.asked
    assert (name, handle) == ("rollout-0", successor)
    bench.item_of(bench.engines[1])
    assert given(successor) == []
    assert len(weights.asked) == 1
    done(True)
    assert len(given(successor)) == 2
    bench.go_on()
    assert sorted(bench.found) == NAMES


def test_who_has_nothing_to_write_gets_the_next_weights_with_all() -> None:
    bench = Bench(engines=2, max_in_flight=12)
    weights = Weights(bench.pool)
    first, second = bench.engines
    bench.start(4)
    first.die()
    bench.hear_of(first)
    (successor,) = bench.watch.started
    bench.hear_of(successor, "loaded")
    bench.go_on()
    assert weights.asked == []
    with bench.pool.updating():
        bench.pool.call_transport("load", 5, "chunk")
    assert second.weights == successor.weights == [(5, ("chunk",))]
    bench.start(4)
    assert len(given(successor)) == 2


def test_who_comes_up_during_a_push_catches_up_after_it() -> None:
    bench = Bench(engines=2, max_in_flight=2)
    weights = Weights(bench.pool)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    (successor,) = bench.watch.started
    with bench.pool.updating():
        bench.pool.call_transport("load", 5, "chunk")
        bench.hear_of(successor, "loaded")
    bench.start(12)
    assert [asked[1] for asked in weights.asked] == [successor]
    assert given(successor) == []


def test_weights_that_do_not_come_leave_a_successor_waiting() -> None:
    bench = Bench(engines=2, max_in_flight=2)
    weights = Weights(bench.pool)
    bench.start(12)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    (successor,) = bench.watch.started
    bench.hear_of(successor, "loaded")
    weights.asked[0][2](False)
    assert given(successor) == []
    assert len(weights.asked) == 1
    bench.item_of(bench.engines[1])
    assert given(successor) == []


@pytest.mark.parametrize("sent", [False, True])
def test_a_successor_owes_an_answer_once_the_weights_are_on_their_way(sent: bool) -> None:
    bench = Bench(engines=1, max_in_flight=2, answer_timeout_s=300.0)
    weights = Weights(bench.pool)
    bench.start(2)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    bench.hear_of(bench.watch.started[0], "loaded")
    if sent:
        weights.sent[0]()
    bench.watch.timers = [one for one in bench.watch.timers if one[0] == 150.0]
    if not sent:
        hanging(bench, 10)
        assert bench.watch.buried == ["rollout-0"]
        return
    with pytest.raises(ActorFailure, match="answered nothing"):
        hanging(bench, 3)


def test_a_death_during_a_push_keeps_the_weights_from_nobody_else() -> None:
    bench = Bench(engines=3, max_in_flight=2)
    Weights(bench.pool)
    first, second, third = bench.engines
    second.die()
    with bench.pool.updating():
        answers = bench.pool.call_transport("load", 5, "chunk")
    assert len(answers) == 2
    assert [e.weights for e in (first, third)] == [[(5, ("chunk",))]] * 2
    assert bench.pool.take_counts() == (1, 0)
    assert bench.watch.buried == ["rollout-1"]


def test_a_death_that_is_heard_of_during_a_push_counts_once() -> None:
    bench = Bench(engines=2, max_restarts=5)
    first = bench.engines[0]
    get = bench.watch.get

    def wait(ref: Any, name: str) -> Any:
        if isinstance(ref, tuple) and ref[:2] == (first, "transport"):
            first.die()
            bench.hear_of(first)  # comes first, while the answer is waited for
        return get(ref, name)

    bench.watch.get = wait
    bench.pool.call_transport("load", 5, "chunk")
    assert bench.pool.take_counts() == (1, 0)


def test_new_weights_wait_for_what_is_written_again_with_the_old() -> None:
    bench = Bench(engines=1, max_in_flight=1)
    bench.start(2)
    bench.go_on()
    bench.pool.write_again(["a0", "a1"])
    with bench.pool.updating():
        assert not bench.pool.busy
        bench.pool.call_transport("load", 5, "chunk")
    assert sorted(bench.found) == ["a0", "a0", "a1", "a1"]


def test_nothing_is_given_out_while_new_weights_come() -> None:
    bench = Bench(engines=1, max_in_flight=8)
    Weights(bench.pool)
    bench.start(2)
    bench.go_on()
    with bench.pool.updating():
        bench.pool.write_again(["a0"])
        assert given(bench.engines[0]) == ["a0", "a1"]
    assert given(bench.engines[0]) == ["a0", "a1", "a0"]


def test_a_failed_push_leaves_the_pool_able_to_write() -> None:
    bench = Bench(engines=1, max_in_flight=8)
    with pytest.raises(ActorDied), bench.pool.updating():
        raise ActorDied("trainer-0", "killed")
    bench.start(1)
    assert given(bench.engines[0]) == ["a0"]


def test_nobody_left_with_the_weights_is_said_where_they_cannot_be_brought() -> None:
    bench = Bench(engines=1, max_in_flight=8)
    Weights(bench.pool, possible=False)
    bench.start(2)
    bench.engines[0].die()
    bench.hear_of(bench.engines[0])
    with pytest.raises(RunError, match="use sync.backend=ray"):
        bench.hear_of(bench.watch.started[0], "loaded")


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


def test_who_has_been_given_nothing_since_a_batch_was_given_up_owes_no_answer() -> None:
    bench = Bench(answer_timeout_s=40.0)
    first, second = bench.engines
    bench.start(4)
    bench.item_of(first)
    bench.pool.abandon()
    for _ in range(4):
        bench.watch.let_time_pass()
    assert bench.watch.buried == []
    bench.start(2)  # and from now on they owe one again
    for _ in range(3):
        bench.watch.let_time_pass()
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
    for _ in range(4):
        bench.watch.let_time_pass()
    assert bench.watch.buried == []


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
