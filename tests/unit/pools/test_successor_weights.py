"""Rollout actors that were started again have the newest weights before they write; stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rollout_bench import NAMES, Bench, given

from opd_ray.errors import ActorDied, ActorFailure, RunError
from opd_ray.pools.rollouts import RolloutPool


class Weights:
    """Brings weights to those that were started again, when the test says so."""

    def __init__(self, pool: RolloutPool, possible: bool = True) -> None:
        self.asked: list[tuple[str, Any, Callable[[bool], object]]] = []
        self.sent: list[Callable[[], object]] = []
        self._possible = possible
        pool.bring_weights_by(self._catch_up)

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
        bench.let_time_pass(10)
        assert bench.watch.buried == ["rollout-0"]
        return
    with pytest.raises(ActorFailure, match="answered nothing"):
        bench.let_time_pass(3)


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
