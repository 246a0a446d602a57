"""What every actor of a run is started with; the actor classes are recorders, no Ray is started."""

from __future__ import annotations

import inspect
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.cluster.placement import plan_placement
from opd_ray.config.schema import Config, RolloutSettings, StudentSettings, TrainerSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.pools import launch as subject
from opd_ray.pools.launch import ActorLauncher

CONFIG = Config(
    student=StudentSettings(path="student"),
    rollout=RolloutSettings(actors=2, threads=3),
    trainer=TrainerSettings(ranks=2),
    teacher=TeacherSettings(path="teacher"),
    teachers={"coder": {"path": "coder"}},
    routes={"sums": "teacher", "code": "coder"},
)
# Fewer than the student's output head has rows: the rest is padding.
TOKENS = 22


class Reference:
    """Never ready."""

    def future(self) -> Future[None]:
        return Future()


class Recorder:
    """Stands in for an actor class and its handles; ``started`` has the arguments by name."""

    def __init__(self, actor_class: Any) -> None:
        plain = actor_class.__ray_metadata__.modified_class
        self._signature = inspect.signature(plain.__init__)
        self.started: list[dict[str, Any]] = []
        self.options_given: list[dict[str, Any]] = []

    def options(self, **options: Any) -> Recorder:
        self.options_given.append(options)
        return self

    def remote(self, *args: Any, **named: Any) -> SimpleNamespace:
        bound = self._signature.bind(self, *args, **named)
        bound.apply_defaults()
        self.started.append(bound.arguments)
        method = SimpleNamespace(remote=Reference)
        return SimpleNamespace(lifeline=method, ready=method)

    def of(self, name: str) -> list[Any]:
        """One argument of every actor started, in order."""
        return [arguments[name] for arguments in self.started]


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    found = {}
    for name in ("RolloutActor", "TeacherActor", "TrainerActor"):
        found[name] = Recorder(getattr(subject, name))
        monkeypatch.setattr(subject, name, found[name])
    group = SimpleNamespace(wait=lambda timeout_seconds: True)
    monkeypatch.setattr(subject, "placement_group", lambda bundles, strategy: group)
    return found


def make_launcher(own_topk: int = 0) -> ActorLauncher:
    placement = plan_placement(CONFIG, Cluster((Node("here", 8, 1 << 36),)))
    return ActorLauncher(placement.settle(CONFIG), placement, vocab_size=TOKENS, own_topk=own_topk)


def test_every_actor_is_told_how_many_real_tokens_there_are(recorders: dict[str, Recorder]) -> None:
    make_launcher(own_topk=5)
    for name, recorder in recorders.items():
        assert recorder.of("vocab_size") == [TOKENS] * 2, name
    assert recorders["TeacherActor"].of("own_topk") == [5, 5]


def test_every_actor_has_its_own_settings_and_number(recorders: dict[str, Recorder]) -> None:
    make_launcher()
    rollouts, trainers, teachers = (
        recorders[f"{role}Actor"] for role in ("Rollout", "Trainer", "Teacher")
    )
    assert [student.path for student in rollouts.of("student")] == ["student"] * 2
    assert [rollout.threads for rollout in rollouts.of("rollout")] == [3, 3]
    assert trainers.of("rank") == [0, 1]
    assert [trainer.ranks for trainer in trainers.of("trainer")] == [2, 2]
    assert [settings.path for settings in teachers.of("settings")] == ["teacher", "coder"]
    assert [settings.name for settings in teachers.of("settings")] == ["teacher", "coder"]
    # Of 8 cores, shared with the rollout actors.
    assert [settings.threads for settings in teachers.of("settings")] == [2, 2]


def test_no_actor_is_restarted_behind_the_runs_back(recorders: dict[str, Recorder]) -> None:
    make_launcher()
    options = [given for recorder in recorders.values() for given in recorder.options_given]
    assert [given["max_restarts"] for given in options] == [0] * 6
    places = [given["scheduling_strategy"].placement_group_bundle_index for given in options]
    assert sorted(places) == list(range(6))


def test_the_teacher_writes_with_the_real_tokens_only(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.kill", lambda handle: None)
    launcher = make_launcher()
    asked: list[str] = []
    monkeypatch.setattr(launcher.watch, "get", lambda ref, owner: asked.append(owner))
    launcher.teacher_as_rollout_pool()
    students = recorders["RolloutActor"].of("student")
    assert [student.path for student in students] == ["student", "student", "teacher"]
    assert recorders["RolloutActor"].of("vocab_size") == [TOKENS] * 3
    assert asked == ["teacher writing answers"]


def test_an_ensemble_is_started_with_its_members(recorders: dict[str, Recorder]) -> None:
    members = {"teacher": TeacherSettings(kind="ensemble", members={"coder": 1.0, "poet": 3.0})}
    teachers = {"coder": {"path": "coder"}, "poet": {"path": "poet"}}
    config = replace(CONFIG, teachers=teachers, routes={}, **members)
    placement = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
    ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS)
    [started] = recorders["TeacherActor"].of("members")
    found = [(m.name, m.weight, m.settings.path, m.settings.threads) for m in started]
    # Of 8 cores, shared by two rollout actors and the ensemble's process.
    assert found == [("coder", 0.25, "coder", 2), ("poet", 0.75, "poet", 2)]
