"""What an event costs the coordinator's process, with ten actors and with a thousand."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Timer
from types import FrameType
from typing import Any

import numpy as np
import pytest
from fake_replicas import (
    FakeReplica,
    FakeWatch,
    Remote,
    is_ready,
    pool_of,
    rollout,
    writers_of,
)
from ray.exceptions import (
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
)

from opd_ray.errors import ActorDied, ActorFailure, ActorLost, ConfigError, RunError, Unanswered
from opd_ray.pools import watch as subject
from opd_ray.pools.scorer import RolloutScorer
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.turns import AllAtOnce
from opd_ray.pools.watch import ActorWatch, AnswerLimit, Interrupted
from opd_ray.types import RolloutRequest, Sampling


class Engine:
    """A rollout actor whose stream always has its next rollout ready."""

    dead = False

    def __init__(self) -> None:
        self._open: list[RolloutRequest] = []
        self.generate = Remote(self._generate)
        self.add = Remote(lambda requests, *_: self._open.extend(requests))

    def _generate(self, requests: list[RolloutRequest], *_: object) -> Engine:
        self._open.extend(requests)
        return self

    def __next__(self) -> list[Any]:
        if not self._open:
            raise StopIteration
        return [rollout(self._open.pop().rollout_id, tokens=4)]


class Loop(FakeWatch):
    """An event loop in which everything is ready at once, first come, first served."""

    def __init__(self) -> None:
        super().__init__()
        self.events: deque[Callable[[], object]] = deque()
        self.dealt_with = 0

    def when_ready(self, ref: Any, call: Any) -> None:
        if is_ready(ref):
            self.events.append(partial(call, ref))

    def read(self, stream: Engine, call: Any, ended: Any) -> None:
        self.events.append(partial(self._next, stream, call, ended))

    def soon(self, call: Any) -> None:
        self.events.append(call)

    def turn(self, what: str) -> None:
        self.dealt_with += 1
        self.events.popleft()()

    def get(self, ref: Any, name: str) -> Any:
        return super().get(ref, name) if isinstance(ref, tuple) else ref

    def _next(self, stream: Engine, call: Any, ended: Any) -> None:
        try:
            item = next(stream)
        except StopIteration:
            ended()
        else:
            call(item)
            self.read(stream, call, ended)


def instructions(work: Callable[[], object]) -> int:
    """How many bytecode instructions of the pools' own files a call takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if "/opd_ray/pools/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def cost_of_an_event(actors: int) -> float:
    """Instructions an event, of a batch with two rollouts an actor."""
    watch: Any = Loop()
    half = actors // 2
    engines = [(f"rollout-{number}", Engine()) for number in range(half)]
    rollouts = writers_of(watch, engines, max_in_flight=1, answer_timeout_s=600.0)
    replicas = [FakeReplica(f"teacher {number}") for number in range(half)]
    pool, _, _ = pool_of(replicas, 8, watch=watch, answer_timeout_s=900.0)
    scorer = RolloutScorer(watch, rollouts, TeacherRouter({"teacher": pool}, {}), AllAtOnce(watch))
    prompt = np.zeros(2, np.int32)
    requests = [RolloutRequest(f"r{n}", f"r{n}", 0, prompt, n) for n in range(2 * half)]
    prompts = {request.prompt_id: prompt for request in requests}
    taken = instructions(lambda: scorer.start(requests, Sampling(), prompts).result())
    return taken / watch.dealt_with


def test_an_event_costs_the_same_however_many_actors_there_are() -> None:
    assert cost_of_an_event(1000) < 1.5 * cost_of_an_event(10)


def run_of(actors: int) -> tuple[Any, Any, TeacherPool]:
    """A loop, half of the actors as engines and half as teachers."""
    watch: Any = Loop()
    engines = [(f"rollout-{number}", Engine()) for number in range(actors // 2)]
    replicas = [FakeReplica(f"teacher {number}") for number in range(actors // 2)]
    pool, _, _ = pool_of(replicas, 8, watch=watch)
    return watch, writers_of(watch, engines, max_in_flight=1), pool


def test_a_rollout_that_is_only_written_costs_the_same() -> None:
    def cost(actors: int) -> float:
        watch, pool, _ = run_of(actors)
        requests = [
            RolloutRequest(f"r{n}", "p", 0, np.zeros(2, np.int32), n) for n in range(actors)
        ]
        found: list[Any] = []
        pool.start(requests, Sampling(), found.extend, record=False)
        taken = instructions(lambda: watch.wait_until(lambda: not pool.busy, "rollouts"))
        assert len(found) == actors
        return taken / actors

    assert cost(1000) < 1.2 * cost(10)


def test_a_teachers_batch_costs_the_same() -> None:
    """Sent out, come back and settled, while all other replicas are at work."""

    def cost(actors: int) -> float:
        watch, _, pool = run_of(2 * actors)
        delivered: list[Any] = []
        pool.deliver = delivered.append
        for number in range(actors):
            pool.submit(rollout(f"r{number}", tokens=8))

        def all_of_them() -> None:
            while watch.events:
                watch.turn("scores")

        taken = instructions(all_of_them)
        assert len(delivered) == actors
        return taken / actors

    assert cost(1000) < 1.2 * cost(10)


@pytest.mark.parametrize("others", [10, 1000])
def test_taking_what_is_scored_costs_what_is_taken(others: int) -> None:
    watch, rollouts, pool = run_of(others)
    scorer = RolloutScorer(watch, rollouts, TeacherRouter({"teacher": pool}, {}), AllAtOnce(watch))
    prompt = np.zeros(2, np.int32)
    requests = [RolloutRequest(f"r{n}", "p", 0, prompt, n) for n in range(others)]
    batch = scorer.start(requests, Sampling(), {})
    watch.wait_until(lambda: batch._untaken_tokens >= 8, "scores")
    taken: list[Any] = []
    cost = instructions(lambda: taken.extend(batch.next_wave(8)))
    assert len(taken) == 2
    assert cost < 300


class Ref(Future[Any]):
    """A reference that is ready when the test says so."""

    def future(self) -> Ref:
        return self


class Handle:
    """An actor that lives until its lifeline ends."""

    def __init__(self) -> None:
        self.asked = 0
        self.line = Ref()
        self.lifeline = Remote(self._lifeline)

    def _lifeline(self) -> Ref:
        self.asked += 1
        return self.line

    def die(self) -> None:
        self.line.set_exception(RayActorError(error_msg="its process is gone"))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> ActorWatch:
    monkeypatch.setattr(subject.ray, "get", lambda ref: ref.result())
    monkeypatch.setattr(subject.ray, "kill", lambda handle: None)
    return ActorWatch(10.0, "a key")


def test_an_event_costs_the_same_however_much_is_pending(watch: ActorWatch) -> None:
    def cost(pending: int) -> int:
        for _ in range(pending):
            watch.when_ready(Ref(), lambda ref: None)  # type: ignore[arg-type]
        found: list[str] = []
        ref: Any = Ref()
        watch.when_ready(ref, lambda ref: found.append(watch.get(ref, "an actor")))
        ref.set_result("there")
        taken = instructions(lambda: watch.wait_until(lambda: bool(found), "news"))
        assert found == ["there"]
        return taken

    assert cost(10) == cost(1000)


def test_an_event_costs_the_same_however_many_actors_are_watched(watch: ActorWatch) -> None:
    def cost(actors: int) -> int:
        watch.shutdown()
        for number in range(actors):
            watch.add(f"actor-{number}", Handle())
        ref: Any = Ref()
        ref.set_result("there")
        return instructions(lambda: watch.get(ref, "actor-0"))

    assert cost(10) == cost(1000)


def test_no_wait_asks_for_lifelines_again(watch: ActorWatch) -> None:
    handles = [Handle() for _ in range(1000)]
    for number, handle in enumerate(handles):
        watch.add(f"actor-{number}", handle)
    ref: Any = Ref()
    ref.set_result(5)
    assert watch.get(ref, "an actor") == 5
    assert {handle.asked for handle in handles} == {1}


def test_events_are_dealt_with_in_whatever_wait_there_is(watch: ActorWatch) -> None:
    awaited: Any = Ref()
    others: Any = [Ref() for _ in range(3)]
    found: list[Any] = []

    def next_one(ref: Any) -> None:
        found.append(watch.get(ref, "an actor"))
        if len(found) < 3:
            others[len(found)].set_result(len(found))
        else:
            watch.soon(lambda: awaited.set_result("all"))

    for ref in others:
        watch.when_ready(ref, next_one)
    others[0].set_result(0)
    assert watch.get(awaited, "another") == "all"
    assert found == [0, 1, 2]


def test_values_come_in_the_order_of_the_calls_whenever_they_are_there(watch: ActorWatch) -> None:
    refs: Any = [Ref() for _ in range(1000)]
    for number, ref in reversed(list(enumerate(refs))):
        ref.set_result(number)
    assert watch.get_all([(ref, "an actor") for ref in refs]) == list(range(1000))


def test_what_nobody_waits_for_any_more_raises_nothing(watch: ActorWatch) -> None:
    late: Any = Ref()
    failed: Any = Ref()
    failed.set_exception(RayTaskError("score", "first", ValueError("first")))
    with pytest.raises(ActorFailure, match="first"):
        watch.get_all([(late, "an actor"), (failed, "another")])
    late.set_exception(RayTaskError("score", "second", ValueError("second")))
    value: Any = Ref()
    value.set_result(1)
    assert watch.get(value, "a third") == 1


def test_a_death_ends_every_wait_though_events_keep_coming(watch: ActorWatch) -> None:
    first, second = Handle(), Handle()
    watch.add("first", first)
    watch.add("second", second)
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        watch.soon(again)

    again()
    watch.hand_over("second")
    second.die()
    watch.wait_until(lambda: count > 10, "news")
    first.die()
    for _ in range(2):
        with pytest.raises(ActorLost, match="first failed: its process is gone") as raised:
            watch.wait_until(lambda: False, "news")
        assert raised.value.name == "first"


def test_who_does_not_answer_in_time_is_named(
    watch: ActorWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_SLICE_SECONDS", 0.01)
    refs: Any = [Ref() for _ in range(3)]
    refs[1].set_result("there")
    pairs = [(ref, f"rank {number}") for number, ref in enumerate(refs)]
    with pytest.raises(Unanswered) as raised:
        watch.get_all(pairs, limit=AnswerLimit(0.05, "a.key"))
    assert str(raised.value) == "rank 0, rank 2: no answer for 0.05 s (a.key)"
    refs[0].set_result("late")
    refs[2].set_result("late")
    assert watch.get_all(pairs, limit=AnswerLimit(0.05, "a.key")) == ["late", "there", "late"]


def test_a_run_that_slept_itself_holds_it_against_nobody(
    watch: ActorWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its process was stopped for longer than the limit: the answers are there since."""
    now = iter([0.0, *[100.0] * 20])
    monkeypatch.setattr(subject.time, "monotonic", lambda: next(now))
    ref: Any = Ref()
    watch.soon(lambda: ref.set_result("there"))
    assert watch.get_all([(ref, "rank 0")], limit=AnswerLimit(5.0, "a.key")) == ["there"]


@pytest.mark.parametrize(("error", "seconds"), [(ValueError, 3.0), (OwnerDiedError, 60.0)])
def test_what_a_loss_may_have_caused_waits_longer_for_the_news_of_it(
    watch: ActorWatch, monkeypatch: pytest.MonkeyPatch, error: type[Exception], seconds: float
) -> None:
    watch.add("first", Handle())
    waited: list[float] = []
    death = ActorLost("first", "first", "its node is gone")

    def next_death(timeout_s: float) -> ActorLost | None:
        waited.append(timeout_s)
        return death if timeout_s else None

    monkeypatch.setattr(watch, "_next_death", next_death)
    cause = error("7f", "here", "load") if error is OwnerDiedError else error("a bug")
    failed: Any = Ref()
    failed.set_exception(RayTaskError("load", "a trace", cause).as_instanceof_cause())
    with pytest.raises(ActorLost) as raised:
        watch.get(failed, "rollout-0")
    assert raised.value is death
    assert max(waited) == seconds


def test_who_waits_for_a_replica_hears_that_it_died_also_after_it_was_taken_out(
    watch: ActorWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject.ray, "kill", lambda handle: None)
    handle = Handle()
    watch.add("first", handle)
    lifeline: Any = watch.hand_over("first")
    watch.when_ready(lifeline, lambda ref: watch.remove("first"))  # and no other in its place
    receipt: Any = Ref()
    gone = RayActorError()
    lifeline.set_exception(gone)
    receipt.set_exception(gone)
    with pytest.raises(ActorDied):
        watch.get(receipt, "first")
    watch.add("first", Handle())  # one that nobody else looks after
    receipt = Ref()
    receipt.set_exception(gone)
    with pytest.raises(ActorFailure) as raised:
        watch.get(receipt, "first")
    assert not isinstance(raised.value, ActorDied)


def test_who_is_handed_over_tells_of_its_death(watch: ActorWatch) -> None:
    handle = Handle()
    watch.add("first", handle)
    deaths: list[str] = []

    def dead(ref: Any) -> None:
        with pytest.raises(ActorDied, match="its process is gone"):
            watch.get(ref, "first")
        deaths.append("first")

    watch.when_ready(watch.hand_over("first"), dead)
    handle.die()
    watch.wait_until(lambda: bool(deaths), "its end")


def test_what_is_to_come_later_comes_when_it_is_due(
    watch: ActorWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(subject.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(subject, "_SLICE_SECONDS", 0.001)
    came: list[str] = []
    watch.later(7.0, lambda: came.append("second"))
    watch.later(3.0, lambda: came.append("first"))

    def turns(count: int) -> None:
        left = iter(range(count))
        watch.wait_until(lambda: next(left, None) is None, "turns")

    turns(3)
    assert came == []
    now[0] = 103.0
    turns(3)
    assert came == ["first"]
    now[0] = 107.0
    turns(3)
    assert came == ["first", "second"]


def test_what_happened_before_it_was_due_is_dealt_with_first(watch: ActorWatch) -> None:
    came: list[str] = []
    watch.later(0.0, lambda: came.append("later"))
    for number in range(3):
        watch.soon(partial(came.append, f"event {number}"))
    watch.wait_until(lambda: len(came) == 4, "all of them")
    assert came == ["event 0", "event 1", "event 2", "later"]


def test_timers_are_no_sign_that_anything_happens(
    watch: ActorWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(subject.time, "monotonic", lambda: now[0])

    def again() -> None:
        now[0] += 1.0
        watch.later(0.0, again)

    again()
    with pytest.raises(subject.StallError, match="nothing happened for 10 s"):
        watch.wait_until(lambda: now[0] > 1000, "news")


def test_what_a_lost_node_kept_for_an_actor_is_its_death(watch: ActorWatch) -> None:
    handle = Handle()
    watch.add("first", handle)
    watch.hand_over("first")
    ref: Any = Ref()
    ref.set_exception(ObjectLostError("00ff", None, ""))
    with pytest.raises(ActorDied):
        watch.get(ref, "first")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConfigError("teacher.path = x: mend it"), "a teacher failed: teacher.path = x: mend it"),
        (ValueError("a bug"), "a teacher failed: ray::score()\n  File actor.py\nValueError: a bug"),
    ],
)
def test_an_error_for_the_user_comes_without_the_frames_of_its_actor(
    cause: Exception, words: str, watch: ActorWatch
) -> None:
    text = "ray::score()\n  File actor.py\nValueError: a bug\n"
    ref: Any = Ref()
    ref.set_exception(RayTaskError("score", text, cause).as_instanceof_cause())
    with pytest.raises(ActorFailure) as raised:
        watch.get_all([(ref, "a teacher")])
    assert str(raised.value) == words


class InterruptedQueue:
    """Events, among which Ctrl-C comes while a wait looks for the next one."""

    def __init__(self, events: list[Callable[[], object] | None]) -> None:
        self._events = deque(events)

    def get(self, timeout: float) -> Callable[[], object]:
        event = self._events.popleft()
        if event is None:
            raise KeyboardInterrupt
        return event

    def put(self, event: Callable[[], object]) -> None:
        self._events.append(event)


def test_ctrl_c_in_a_wait_asks_for_a_stop_where_no_signal_handler_does() -> None:
    done: list[int] = []
    watch = ActorWatch(10.0, "a key")
    watch.interrupt_stops = True
    watch._events = InterruptedQueue([None, lambda: done.append(1), None])  # type: ignore[assignment]
    watch.wait_until(lambda: bool(done), "what comes next")
    assert watch.stop_requested
    with pytest.raises(KeyboardInterrupt):  # a second one
        watch.wait_until(lambda: False, "what never comes")
    with pytest.raises(Interrupted):
        watch.wait_until(lambda: False, "what comes next", interruptible=True)


def test_ctrl_c_is_as_it_is_where_signal_handlers_ask_for_a_stop() -> None:
    watch = ActorWatch(10.0, "a key")
    watch._events = InterruptedQueue([None])  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        watch.wait_until(lambda: False, "what never comes")
    assert not watch.stop_requested


def test_a_failure_that_another_thread_tells_ends_the_wait_under_way() -> None:
    watch = ActorWatch(10.0, "a key")
    Timer(0.05, watch.fail, [RunError("Ray is gone")]).start()
    with pytest.raises(RunError, match="Ray is gone"):
        watch.wait_until(lambda: False, "an answer")


def test_a_wait_has_a_pulse_whether_anything_happens_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "_SLICE_SECONDS", 0.02)
    watch, pulses = ActorWatch(10.0, "a key"), list[int]()
    watch.pulse = lambda: pulses.append(1)
    watch.wait_until(lambda: len(pulses) >= 2, "time to pass")

    def again() -> None:
        watch.soon(again)

    again()  # never a moment without an event
    watch.wait_until(lambda: len(pulses) >= 4, "time to pass")
