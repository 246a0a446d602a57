"""What Ray's errors say: a full object store with what to do, actors that never ran."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import (
    ActorDiedError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayError,
    RaySystemError,
    RayTaskError,
)

from opd_ray.errors import ActorFailure
from opd_ray.pools.ray_errors import never_ran
from opd_ray.pools.watch import ActorWatch


def told(error: RayError) -> str:
    """What a wait for an answer says that is this error."""
    watch = ActorWatch(1.0, "cluster.stall_timeout_s")
    answer: Future[Any] = Future()
    answer.set_exception(error)

    class Ref:
        def future(self) -> Future[Any]:
            return answer

    with pytest.raises(ActorFailure) as raised:
        watch.get(Ref(), "rollout-0")  # type: ignore[arg-type]
    return str(raised.value)


@pytest.mark.parametrize("kind", [ObjectStoreFullError, OutOfDiskError])
@pytest.mark.parametrize("in_a_task", [False, True])
def test_a_full_store_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, kind: type[RayError], in_a_task: bool
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    error = kind("Local disk is full\nThe object cannot be created.")
    if in_a_task:
        error = RayTaskError("score", "a long\ntraceback", error).as_instanceof_cause()
    said = told(error)
    assert said.startswith("rollout-0 failed: Ray's object store is full, and what it spills to")
    assert "make room in /scratch/ray" in said
    assert "cluster.object_store_bytes" in said
    assert "traceback" not in said
    assert "\n" not in said


def test_other_errors_are_told_as_they_are() -> None:
    error = RayTaskError("score", "a traceback", ValueError("bad")).as_instanceof_cause()
    assert "a traceback" in told(error)


NODE = "The actor died because its node has died. Node Id: 00ff"
PROCESS = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"


@pytest.mark.parametrize(
    ("said", "never_started", "expected"),
    [(NODE, True, True), (NODE, False, False), (PROCESS, True, False), (PROCESS, False, False)],
)
def test_only_an_actor_that_was_given_to_a_dead_node_never_ran(
    said: str, never_started: bool, expected: bool
) -> None:
    """In Ray's words one whose process dies in its constructor never ran either."""
    context = ActorDiedErrorContext(
        error_message=said, never_started=never_started, actor_id=bytes(16)
    )
    assert never_ran(ActorDiedError(context)) is expected


def test_an_actor_that_never_ran_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises for one whose node went first; all others are ended all the same."""
    raises, killed = {"a": "Actor creation cancelled."}, []

    def kill(handle: Worker) -> None:
        killed.append(handle.name)
        if handle.name in raises:
            raise RaySystemError(raises[handle.name])

    class Worker:
        def __init__(self, name: str) -> None:
            self.name, self.lifeline = name, self

        def remote(self) -> Worker:
            return self

        def future(self) -> Future[Any]:
            return Future()

    monkeypatch.setattr("opd_ray.pools.watch.ray.kill", kill)
    watch = ActorWatch(1.0, "cluster.stall_timeout_s")
    for name in ("a", "b"):
        watch.add(name, Worker(name))
    watch.shutdown()
    assert killed == ["a", "b"]
    raises["b"] = "another"
    watch.add("b", Worker("b"))
    with pytest.raises(RaySystemError, match="another"):
        watch.remove("b")
