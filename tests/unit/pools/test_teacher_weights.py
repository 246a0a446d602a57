"""Teachers that follow the student, some of whose replicas have died unnoticed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Remote
from ray.exceptions import ActorDiedError

from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ActorDied, ActorFailure, ActorLost, RunError
from opd_ray.pools.turns import AllAtOnce
from opd_ray.pools.weights import TeacherWeights


class Replica:
    """Answers with its own name; a dead one with the news of its death."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.asked: list[str] = []
        for method in ("follow", "save", "load", "begin_anew", "output_head"):
            setattr(self, method, Remote(lambda *_, method=method: self._ask(method)))

    def _ask(self, method: str) -> Replica:
        self.asked.append(method)
        return self


class ActorWatch:
    def wait_until(self, done: Any, what: str) -> None:
        assert done(), f"a real run would wait for {what}"

    def get(self, ref: Replica, owner: str) -> None:
        assert ref.name == owner
        if ref.dead:
            raise ActorDied(owner, "killed")


class Parts:
    """Pool and trainers: the latter take heads of the living alone, as their own get does."""

    def __init__(self) -> None:
        self.replicas = [Replica("own-0"), Replica("own-1")]
        self.heads: list[str] = []
        settings = TeacherSettings(kind="self", follow_decay=0.9, signal=SignalChoice.hidden)
        pool: Any = self
        self.teacher_weights = TeacherWeights(
            ActorWatch(),  # type: ignore[arg-type]
            {"own": (settings, pool)},
            self,
            AllAtOnce(ActorWatch()),
        )

    def living(self) -> list[tuple[str, Replica]]:
        return [(replica.name, replica) for replica in self.replicas]

    def set_teacher_head(self, head: Replica, teacher: str) -> None:
        assert not head.dead
        self.heads.append(head.name)


def test_the_others_go_on_where_the_first_is_dead(tmp_path: Path) -> None:
    parts = Parts()
    first, second = parts.replicas
    parts.teacher_weights.follow([])
    parts.teacher_weights.save(str(tmp_path))
    assert (first.asked.count("save"), second.asked.count("save")) == (1, 0)
    first.dead = True
    parts.teacher_weights.follow([])
    parts.teacher_weights.save(str(tmp_path))
    assert second.asked.count("save") == 1
    (tmp_path / "own.safetensors").touch()
    parts.teacher_weights.load(str(tmp_path))
    assert parts.heads == ["own-0", "own-0", "own-1", "own-1"]


def test_every_follower_has_its_own_file_and_head(tmp_path: Path) -> None:
    calls: list[tuple[str, str, tuple[Any, ...]]] = []
    heads: list[tuple[str, str]] = []

    class Teacher:
        def __init__(self, name: str) -> None:
            self.name, self.dead = name, False

        def __getattr__(self, method: str) -> Remote:
            return Remote(lambda *args: calls.append((self.name, method, args)) or self)

    def pool(name: str) -> Any:
        replicas = [(f"{name}-{number}", Teacher(f"{name}-{number}")) for number in range(2)]
        return SimpleNamespace(living=lambda: replicas)

    follows = TeacherSettings(kind="self", follow_decay=0.9, signal=SignalChoice.hidden)
    stays = TeacherSettings(kind="hf", signal=SignalChoice.hidden)
    trainers: Any = SimpleNamespace(
        set_teacher_head=lambda head, name: heads.append((head.name, name))
    )
    watch: Any = ActorWatch()
    teachers = {"a": (follows, pool("a")), "b": (stays, pool("b")), "c": (follows, pool("c"))}
    weights = TeacherWeights(watch, teachers, trainers, AllAtOnce(watch))
    assert heads == [("a-0", "a"), ("b-0", "b"), ("c-0", "c")]
    folder = tmp_path / "step" / "teachers"
    weights.save(str(folder))
    paths = {name: str(folder / f"{name}.safetensors") for name in "ac"}
    written = [call for call in calls if call[1] == "save"]
    assert written == [("a-0", "save", (paths["a"],)), ("c-0", "save", (paths["c"],))]
    for path in paths.values():
        Path(path).touch()
    heads.clear()
    weights.load(str(folder))
    assert [call for call in calls if call[1] == "load"] == [
        (f"{name}-{number}", "load", (paths[name],)) for name in "ac" for number in range(2)
    ]
    weights.follow(["chunk 1", "chunk 2"])  # type: ignore[list-item]
    assert [call for call in calls if call[1] == "follow"] == [
        (f"{name}-{number}", "follow", ("chunk 1", "chunk 2"))
        for name in "ac"
        for number in range(2)
    ]
    assert heads == [("a-0", "a"), ("c-0", "c")] * 2


def test_none_left_is_said(tmp_path: Path) -> None:
    parts = Parts()
    for replica in parts.replicas:
        replica.dead = True
    for act in (
        lambda: parts.teacher_weights.follow([]),
        lambda: parts.teacher_weights.save(str(tmp_path)),
    ):
        with pytest.raises(RunError, match="teacher 'own', which follows .*: every replica died"):
            act()


def _taking(heads: list[str], error: Exception) -> Any:
    """Trainers whose call fails with this, once, where the replica dies before it has answered."""

    def take(head: Replica, teacher: str) -> None:
        if head.dead:
            raise ActorFailure("trainer-0 (set_teacher_head)", str(error)) from error
        heads.append(head.name)

    return SimpleNamespace(set_teacher_head=take)


def test_a_replica_that_dies_before_trainers_have_its_head_leaves_that_to_another() -> None:
    parts = Parts()
    first, second = parts.replicas
    parts.teacher_weights.trainers = _taking(parts.heads, ActorDiedError())

    def wait_until(done: Any, what: str) -> None:
        if not done():
            parts.replicas.remove(first)  # its death has been noticed
        assert done(), what

    parts.teacher_weights.watch.wait_until = wait_until  # type: ignore[method-assign, assignment]
    first.dead = True
    parts.teacher_weights.share_heads()
    assert parts.heads == ["own-0", "own-1"]
    assert second.asked == ["output_head"]


@pytest.mark.parametrize("error", [ValueError("no such shape"), None])
def test_whatever_else_befalls_trainers_meanwhile_is_not_tried_again(error: Any) -> None:
    parts = Parts()
    parts.replicas[0].dead = True
    lost = ActorLost("trainer-1", "trainer-1", "its process is gone")
    lost.__cause__ = ActorDiedError()
    trainers = _taking(parts.heads, error)
    if error is None:
        trainers = SimpleNamespace(set_teacher_head=lambda *_: _raise(lost))
    parts.teacher_weights.trainers = trainers
    with pytest.raises(ActorFailure):
        parts.teacher_weights.share_heads()
    assert parts.heads == ["own-0"]


def _raise(error: Exception) -> None:
    raise error


def test_new_trainers_get_the_heads_and_followers_begin_anew() -> None:
    parts = Parts()
    assert parts.heads == ["own-0"]
    parts.teacher_weights.share_heads()
    assert parts.heads == ["own-0", "own-0"]
    parts.replicas[0].dead = True
    parts.teacher_weights.begin_anew()
    assert [replica.asked.count("begin_anew") for replica in parts.replicas] == [1, 1]
    assert parts.heads == ["own-0", "own-0", "own-1"]
