"""What an event costs the coordinator's process, with ten actors and with a thousand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import numpy as np
import pytest
from fake_replicas import FakeReplica, Remote, is_ready, pool_of, rollout
from ray.exceptions import RayActorError, RayTaskError

from opd_ray.errors import ActorFailure, ConfigError
from opd_ray.pools import watch as subject
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.scorer import RolloutScorer
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import RolloutRequest, Sampling


class Engine:
    """A rollout actor whose stream always has its next rollout ready."""

    def __init__(self) -> None:
        self._open: list[RolloutRequest] = []
        self.generate = Remote(self._generate)
        self.add = Remote(lambda requests, more: self._open.extend(requests))

    def _generate(self, requests: list[RolloutRequest], *_: object) -> Engine:
        self._open.extend(requests)
        return self

    def __next__(self) -> list[Any]:
        if not self._open:
            raise StopIteration
        return [rollout(self._open.pop().rollout_id, tokens=4)]


class Looks:
    """A watch that brings all that is ready, and counts the references it looks at."""

    def __init__(self) -> None:
        self.references = self.events = 0

    def wait(self, pending: Sequence[Any], what: str, *, interruptible: bool) -> list[Any]:
        ready = [one for one in pending if isinstance(one, Engine) or is_ready(one)]
        self.references += len(pending)
        self.events += len(ready)
        return ready

    def get(self, ref: Any, owner: str) -> Any:
        return ref


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


def cost_of_an_event(actors: int) -> tuple[float, float]:
    """Of a batch with two rollouts an actor: references looked at, and instructions."""
    watch: Any = Looks()
    half = actors // 2
    engines = [(f"rollout-{number}", Engine()) for number in range(half)]
    rollouts = RolloutPool(watch, engines, max_in_flight=1)
    pool, _, _ = pool_of([FakeReplica(f"teacher {number}") for number in range(half)], 8)
    scorer = RolloutScorer(watch, rollouts, TeacherRouter({"teacher": pool}, {}))
    prompt = np.zeros(2, np.int32)
    requests = [RolloutRequest(f"r{n}", f"r{n}", 0, prompt, n) for n in range(2 * half)]
    prompts = {request.prompt_id: prompt for request in requests}
    taken = instructions(lambda: scorer.score(requests, Sampling(), prompts))
    return watch.references / watch.events, taken / watch.events


def test_an_event_costs_the_same_however_many_actors_there_are() -> None:
    few, many = cost_of_an_event(10), cost_of_an_event(1000)
    for of_ten, of_a_thousand in zip(few, many, strict=True):
        assert of_a_thousand < 1.5 * of_ten


class Handle:
    """An actor that lives until ``ended`` is called."""

    ended: Callable[[object], None]

    def __init__(self) -> None:
        self.asked = 0
        self.lifeline = Remote(self._lifeline)

    def _lifeline(self) -> Handle:
        self.asked += 1
        return self

    def future(self) -> Handle:
        return self

    def add_done_callback(self, call: Callable[[object], None]) -> None:
        self.ended = call


def ray_that_has(ready: set[str], looks: list[list[str]]) -> Any:
    """``ray.wait`` for references that are words."""

    def wait(
        pending: list[str], num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[str], list[str]]:
        looks.append(pending)
        found = [ref for ref in pending if ref in ready][:num_returns]
        return found, [ref for ref in pending if ref not in found]

    return wait


def test_a_wait_looks_at_what_is_pending_and_at_no_lifeline(monkeypatch: Any) -> None:
    watch = ActorWatch(10.0, "a key")
    handles = [Handle() for _ in range(1000)]
    for number, handle in enumerate(handles):
        watch.add(f"actor-{number}", handle)
    looks: list[list[str]] = []
    monkeypatch.setattr(subject.ray, "wait", ray_that_has({"b", "d"}, looks))
    assert watch.wait(list("abcd"), "letters") == ["b", "d"]
    assert looks == [list("abcd"), list("abcd")]
    assert {handle.asked for handle in handles} == {1}


def test_values_of_a_thousand_actors_take_few_looks(monkeypatch: Any) -> None:
    watch = ActorWatch(10.0, "a key")
    looks: list[list[str]] = []
    refs = [f"ref-{number}" for number in range(1000)]
    monkeypatch.setattr(subject.ray, "wait", ray_that_has(set(refs), looks))
    monkeypatch.setattr(subject.ray, "get", lambda ref: ref.upper())
    pairs = [(ref, "an actor") for ref in refs]
    assert watch.get_all(pairs) == [f"REF-{number}" for number in range(1000)]
    assert len(looks) == 1


def test_a_death_ends_every_wait_though_events_keep_coming(monkeypatch: Any) -> None:
    watch = ActorWatch(10.0, "a key")
    first, second = Handle(), Handle()
    watch.add("first", first)
    watch.add("second", second)
    monkeypatch.setattr(subject.ray, "wait", ray_that_has({"a"}, []))
    monkeypatch.setattr(subject.ray, "get", gone)
    assert watch.wait(["a"], "letters") == ["a"]
    watch.hand_over("second")
    second.ended(None)
    assert watch.wait(["a"], "letters") == ["a"]
    first.ended(None)
    for _ in range(2):
        with pytest.raises(ActorFailure, match="first failed: its process is gone"):
            watch.wait(["a"], "letters")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConfigError("teacher.path = x: mend it"), "a teacher failed: teacher.path = x: mend it"),
        (ValueError("a bug"), "a teacher failed: ray::score()\n  File actor.py\nValueError: a bug"),
    ],
)
def test_an_error_for_the_user_comes_without_the_frames_of_its_actor(
    cause: Exception, words: str, monkeypatch: Any
) -> None:
    text = "ray::score()\n  File actor.py\nValueError: a bug\n"

    def raises(ref: object) -> None:
        raise RayTaskError("score", text, cause).as_instanceof_cause()

    monkeypatch.setattr(subject.ray, "wait", ray_that_has({"a"}, []))
    monkeypatch.setattr(subject.ray, "get", raises)
    with pytest.raises(ActorFailure) as raised:
        ActorWatch(10.0, "a key").get_all([("a", "a teacher")])
    assert str(raised.value) == words


def gone(ref: object) -> None:
    raise RayActorError(error_msg="its process is gone")
