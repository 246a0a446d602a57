"""What every actor of a run is started with; the actor classes are recorders, no Ray is started."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Remote

from actors import FOLDER_VARIABLE
from actors.run_folder import CONTENTS_VARIABLE
from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.cluster.placement import plan_placement
from opd_ray.config.choices import Beside, CacheMode, PlacementChoice, Support
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import (
    ClusterSettings,
    Config,
    LossSettings,
    RolloutSettings,
    StudentSettings,
    TrainerSettings,
)
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ActorDied, ActorFailure, ActorLost, RunError
from opd_ray.pools import launch as subject
from opd_ray.pools import places
from opd_ray.pools.launch import ActorLauncher
from opd_ray.pools.watch import ActorWatch, AnswerLimit, Interrupted

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

    def __init__(self, *_: object) -> None:
        pass

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
        return SimpleNamespace(lifeline=method, ready=method, address=method, setup=method)

    def of(self, name: str) -> list[Any]:
        """One argument of every actor started, in order."""
        return [arguments[name] for arguments in self.started]


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    found = {}
    for name in ("RolloutActor", "TeacherActor", "TrainerActor"):
        found[name] = Recorder(getattr(places, name))
        monkeypatch.setattr(places, name, found[name])
    group = SimpleNamespace(wait=lambda timeout_seconds: True)
    monkeypatch.setattr(places, "placement_group", lambda bundles, strategy: group)
    return found


def make_launcher(own_topk: int = 0) -> ActorLauncher:
    placement = plan_placement(CONFIG, Cluster((Node("here", 8, 1 << 36),)))
    return ActorLauncher(placement.settle(CONFIG), placement, vocab_size=TOKENS, own_topk=own_topk)


def test_a_cluster_that_others_use_is_no_bad_input(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Any] = []
    group = SimpleNamespace(wait=lambda timeout_seconds: False)
    monkeypatch.setattr(places, "placement_group", lambda bundles, strategy: group)
    monkeypatch.setattr(places, "remove_placement_group", removed.append)
    with pytest.raises(RunError, match=r"did not free .* within cluster.start_timeout_s = 600 s"):
        make_launcher()
    assert removed == [group]


def test_every_actor_is_told_how_many_real_tokens_there_are(recorders: dict[str, Recorder]) -> None:
    make_launcher(own_topk=5)
    for name, recorder in recorders.items():
        assert recorder.of("vocab_size") == [TOKENS] * 2, name
    assert recorders["TeacherActor"].of("own_topk") == [5, 5]


@pytest.mark.parametrize("lag", [0, 1])
def test_trainers_are_told_whether_rollouts_may_lag(
    recorders: dict[str, Recorder], lag: int
) -> None:
    config = replace(CONFIG, run=replace(CONFIG.run, lag=lag))
    placement = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
    ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS)
    assert recorders["TrainerActor"].of("lagged") == [lag > 0] * 2


def test_teachers_are_told_whose_tokens_the_loss_names(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        f"{__name__}.CONFIG", replace(CONFIG, loss=LossSettings(support=Support.union))
    )
    make_launcher()
    assert recorders["TeacherActor"].of("support") == [Support.union] * 2


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_actor_is_told_to_compute_reproducibly(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch, deterministic: bool, gpus: int
) -> None:
    config = replace(CONFIG, run=replace(CONFIG.run, deterministic=deterministic))
    node = Node("here", 8, 1 << 36, gpus=2, gpu_memory_bytes=1 << 36)
    placement = plan_placement(
        replace(config, rollout=replace(config.rollout, gpus_per_actor=gpus)), Cluster((node,))
    )
    settled = placement.settle(config)
    settled = replace(settled, rollout=replace(settled.rollout, gpus_per_actor=gpus))
    launcher = ActorLauncher(settled, placement, vocab_size=TOKENS)
    for name, recorder in recorders.items():
        assert recorder.of("deterministic") == [deterministic] * 2, name
        for options in recorder.options_given:
            variables = options["runtime_env"]["env_vars"]
            # Relative paths mean the same there.
            assert variables[FOLDER_VARIABLE] == os.getcwd()
            assert variables.get("MKL_CBWR") == ("AUTO" if deterministic else None)
            assert variables.get("PYTHONHASHSEED") == ("0" if deterministic else None)
            # vLLM's engines on CPUs do not come up with it.
            invariant = deterministic and gpus and name == "RolloutActor"
            assert variables.get("VLLM_BATCH_INVARIANT") == ("1" if invariant else None)
    assert (launcher.rollout_pool().shares is not None) is deterministic


def test_every_actor_is_told_what_of_its_own_lies_in_the_runs_folder(
    recorders: dict[str, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("student", "teacher"):  # and no coder: that is a name of the hub
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    make_launcher()
    found = {
        name: [
            json.loads(options["runtime_env"]["env_vars"][CONTENTS_VARIABLE])
            for options in recorder.options_given
        ]
        for name, recorder in recorders.items()
    }
    student = {"student.path": "student"}
    assert found == {
        "RolloutActor": [student, student],
        "TrainerActor": [student, student],
        "TeacherActor": [{"teacher.path": "teacher"}, {}],
    }


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
    asked: list[list[str]] = []

    def answers(pairs: list[tuple[Any, str]], **_: object) -> list[None]:
        asked.append([owner for _, owner in pairs])
        return [None]

    monkeypatch.setattr(launcher.watch, "get_all", answers)
    launcher.rollout_pool()
    launcher.teacher_as_rollout_pool()
    students = recorders["RolloutActor"].of("student")
    assert [student.path for student in students] == ["student", "student", "teacher"]
    assert recorders["RolloutActor"].of("vocab_size") == [TOKENS] * 3
    assert asked == [["teacher writing answers"]]


@pytest.mark.parametrize("deaths", [2, 4])
def test_a_teacher_that_dies_before_it_can_write_is_started_again(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """Its answers come after the last step: a whole run would have failed at its report."""
    monkeypatch.setattr("ray.kill", lambda handle: None)
    launcher = make_launcher()
    left = iter(range(deaths))

    def answers(pairs: list[tuple[Any, str]], **_: object) -> list[None]:
        ((_, name),) = pairs
        if next(left, None) is not None:
            raise ActorLost(name, name, "killed")
        return [None]

    monkeypatch.setattr(launcher.watch, "get_all", answers)
    launcher.rollout_pool()
    if deaths > CONFIG.rollout.max_restarts:
        with pytest.raises(
            ActorFailure, match=r"rollout\.max_restarts = 3 allows no further start"
        ):
            launcher.teacher_as_rollout_pool()
        return
    pool = launcher.teacher_as_rollout_pool()
    assert [name for name, _ in pool.living()] == ["teacher writing answers"]
    students = recorders["RolloutActor"].of("student")
    assert [student.path for student in students[2:]] == ["teacher"] * (1 + deaths)


class Handle:
    """An actor whose calls are their own answers: (actor, method, arguments ...)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, method: str) -> Remote:
        return Remote(lambda *args: (self.name, method, *args))


def with_handles(launcher: ActorLauncher) -> ActorLauncher:
    """Its actors answer, and so does its watch: a reference is its value."""
    for actors in launcher._actors.values():
        actors[:] = [(name, Handle(name)) for name, _ in actors]
    watch: Any = launcher.watch
    watch.get = lambda ref, owner, **_: ("10.0.0.1", 7) if ref[1] == "address" else ref
    watch.get_all = lambda pairs, **_: [ref for ref, owner in pairs]
    return launcher


def test_ranks_meet_at_the_first_and_teachers_tell_of_themselves_by_name(
    recorders: dict[str, Recorder],
) -> None:
    launcher = with_handles(make_launcher())
    waited: list[tuple[Any, str]] = []
    launcher.watch.get_all = lambda pairs, **_: [waited.append(pair) or pair[0] for pair in pairs]
    infos = launcher.ready()
    names = {role: [name for name, _ in launcher._actors[role]] for role in launcher._actors}
    one, other = names["teacher"]
    assert infos == {"teacher": (one, "ready"), "coder": (other, "ready")}
    assert [ref for ref, _ in waited if ref[1] == "setup"] == [
        (name, "setup", "10.0.0.1", 7) for name in names["trainer"]
    ]
    everyone = [name for actors in names.values() for name in actors]
    assert sorted(owner for _, owner in waited) == sorted(everyone)
    assert all(ref[0] == owner for ref, owner in waited)
    # Loading has a limit of its own; from now on that of a step holds.
    watch = launcher.watch
    assert watch._stall_timeout_s == CONFIG.cluster.stall_timeout_s
    assert watch._stall_timeout_key == "cluster.stall_timeout_s"


def test_every_teacher_has_a_pool_of_its_own_replicas(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(subject, "TeacherPool", lambda *a, **k: made.append((a, k)) or len(made))
    launcher = make_launcher()
    assert launcher.teacher_pools() == {"teacher": 1, "coder": 2}
    actors = launcher._actors["teacher"]
    for (replicas, budget, watch, recovery), _ in (made[0], made[1]):
        assert budget == CONFIG.teacher.batch_tokens
        assert watch is launcher.watch
        assert recovery.max_restarts == CONFIG.teacher.max_restarts
        assert recovery.start_timeout_s == CONFIG.cluster.start_timeout_s
        assert recovery.answer_timeout_s == CONFIG.teacher.answer_timeout_s
        before = len(recorders["TeacherActor"].started)
        recovery.start(replicas[0][0])  # anew at its own place, with its own settings
        again = recorders["TeacherActor"].of("settings")[before:]
        assert [settings.name for settings in again] == [
            "teacher" if replicas == actors[:1] else "coder"
        ]
    assert [replicas for (replicas, *_), _ in made] == [actors[:1], actors[1:]]
    assert made[1][0][3].no_more.startswith("teachers.coder.max_restarts = 1")
    assert made[1][0][3].key == "teachers.coder"


def test_the_pools_of_rollouts_and_ranks_have_the_runs_actors_and_limits(
    recorders: dict[str, Recorder],
) -> None:
    launcher = make_launcher()
    rollouts, trainers = launcher.rollout_pool(), launcher.trainer_group()
    assert rollouts.living() == launcher._actors["rollout"]
    assert rollouts.max_in_flight == CONFIG.rollout.max_num_seqs
    assert trainers.ranks == launcher._actors["trainer"]
    assert trainers.settings == launcher.config.trainer


def test_peak_memory_is_by_actor_and_leaves_the_dead_out(recorders: dict[str, Recorder]) -> None:
    launcher = with_handles(make_launcher())
    launcher.rollout_pool()
    launcher.teacher_pools()
    dead = [launcher._actors["rollout"][0][0], launcher._actors["teacher"][1][0]]
    ended: list[str] = []

    def get(ref: Any, owner: str) -> int:
        assert ref == (owner, "peak_memory")
        if owner in dead:
            raise ActorDied(owner, "killed")
        return len(owner)

    launcher.watch.get = get  # type: ignore[method-assign]
    launcher.watch.remove = ended.append  # type: ignore[method-assign]
    launcher.watch.add = lambda name, handle: None  # type: ignore[method-assign]
    launcher.watch.hand_over = lambda name: Reference()  # type: ignore[method-assign]
    trainers = launcher._actors["trainer"]
    launcher.watch.get_all = lambda pairs, **_: [len(ref[0]) for ref, owner in pairs]  # type: ignore[method-assign]
    assert len(trainers) == 2
    everyone = [name for actors in launcher._actors.values() for name, _ in actors]
    assert launcher.peak_memory() == {name: len(name) for name in everyone if name not in dead}
    assert ended == dead


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


@pytest.mark.parametrize("refs_at_once", [1, 6])
def test_a_stop_does_not_wait_until_all_models_are_loaded(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch, refs_at_once: int
) -> None:
    """Neither while the first trainer comes up, nor later. A large model loads for minutes."""
    launcher = with_handles(make_launcher())
    del launcher.watch.get, launcher.watch.get_all  # the watch itself waits

    asked: list[Any] = []

    def when_ready(watch: ActorWatch, ref: Any, call: Callable[[Any], object]) -> None:
        asked.append(ref)
        if len(asked) < refs_at_once:
            address: Future[Any] = Future()
            address.set_result(("10.0.0.1", 7))
            watch.soon(partial(watch._deal_with, ref, address, call))
        else:
            watch.stop_requested = True

    monkeypatch.setattr(ActorWatch, "when_ready", when_ready)
    with pytest.raises(Interrupted, match="stopped while waiting for"):
        launcher.ready()


def test_trainers_are_ended_all_at_once_and_start_at_their_places(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    monkeypatch.setattr("ray.kill", killed.append)
    launcher = make_launcher()
    group = launcher.trainer_group()
    old = [handle for _, handle in group.ranks]
    waited: list[tuple[list[str], AnswerLimit, int]] = []

    def get_all(pairs: Any, *, limit: AnswerLimit, interruptible: bool) -> list[Any]:
        assert interruptible
        owners = [owner for _, owner in pairs]
        waited.append((owners, limit, len(killed)))
        return [("10.0.0.1", 7)] * len(owners)

    launcher.watch.get_all = get_all  # type: ignore[method-assign]
    stalls: list[float] = []
    launcher.watch.set_stall_timeout = lambda seconds, key: stalls.append(seconds)  # type: ignore[method-assign]
    launcher.config = replace(CONFIG, cluster=replace(CONFIG.cluster, stall_timeout_s=5.0))
    group.replace_by(launcher.restart_trainers())
    assert stalls == [CONFIG.cluster.start_timeout_s, 5.0]
    assert killed == old
    new = [handle for _, handle in group.ranks]
    assert [name for name, _ in group.ranks] == launcher.trainer_names == ["trainer-0", "trainer-1"]
    assert not {id(handle) for handle in new} & {id(handle) for handle in old}
    trainers = recorders["TrainerActor"]
    assert trainers.of("rank") == [0, 1, 0, 1]
    bundles = [
        options["scheduling_strategy"].placement_group_bundle_index
        for options in trainers.options_given
    ]
    assert bundles[:2] == bundles[2:]
    # None is waited for before all old ones are ended.
    limit = AnswerLimit(CONFIG.cluster.start_timeout_s, "cluster.start_timeout_s")
    assert waited == [
        (["trainer-0 (its start)"], limit, 2),
        (["trainer-0 (its start)", "trainer-1 (its start)"], limit, 2),
    ]
    launcher.end_trainers()
    assert killed == [*old, *new]
    assert launcher._actors["trainer"] == []


def adapted(**values: Any) -> Config:
    """A run whose student is trained as an adapter, judged by its own base on two replicas."""
    student = replace(CONFIG.student, lora=LoraSettings(rank=8))
    teacher = TeacherSettings(kind="self", replicas=3)
    run = replace(CONFIG.run, seed=5)
    return replace(
        CONFIG, student=student, teacher=teacher, teachers={}, routes={}, run=run, **values
    )


def test_a_base_with_its_adapter_off_is_asked_of_the_ranks_in_turn(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = adapted()
    placement = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
    launcher = ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS)
    first, second = (handle for _, handle in launcher._actors["trainer"])
    assert recorders["TeacherActor"].of("trainer") == [first, second, first]
    assert recorders["TrainerActor"].of("seed") == [5, 5]
    launcher = with_handles(launcher)
    waited: list[list[str]] = []
    launcher.watch.get_all = lambda pairs, **_: (  # type: ignore[method-assign]
        waited.append([owner for _, owner in pairs]) or [ref for ref, _ in pairs]
    )
    assert launcher.ready() == {"teacher": ("teacher-2", "ready")}
    # Only once the ranks are up, whose models they are asked of.
    assert waited == [
        ["rollout-0", "rollout-1", "trainer-0", "trainer-1"],
        [
            *("rollout-0", "rollout-1", "trainer-0", "trainer-1"),
            *("teacher-0", "teacher-1", "teacher-2"),
        ],
    ]


def test_replicas_ask_the_ranks_that_started_last(recorders: dict[str, Recorder]) -> None:
    config = adapted()
    placement = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
    launcher = with_handles(ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS))
    launcher.teacher_pools()
    new = [("trainer-0", Handle("new 0")), ("trainer-1", Handle("new 1"))]
    launcher._actors["trainer"][:] = new
    asked: list[Any] = []
    launcher.watch.get = lambda ref, owner, **_: asked.append(ref)  # type: ignore[method-assign]
    launcher.ask_new_trainers()
    ranks = [handle for _, handle in new]
    assert asked == [
        ("teacher-0", "ask", ranks[0]),
        ("teacher-1", "ask", ranks[1]),
        ("teacher-2", "ask", ranks[0]),
    ]


def test_replicas_that_come_up_begin_anew_with_the_ranks_before_anything_is_waited_for(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    anew = SimpleNamespace(
        lose_source=lambda: events.append("source gone"),
        begin_anew=lambda: events.append("begin anew"),
    )
    monkeypatch.setattr(subject, "TeacherPool", lambda *a, **k: anew)
    for config in (adapted(), CONFIG):
        placement = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
        launcher = ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS)
        launcher.teacher_pools()
        monkeypatch.setattr(launcher, "_start_again", lambda name: events.append(f"{name} again"))
        monkeypatch.setattr(
            subject,
            "answers_of_ranks",
            lambda *a, refs, **k: events.append("waited") or [("10.0.0.1", 7)] * len(refs),
        )
        launcher.restart_trainers()
    ranks = ["trainer-0 again", "waited", "waited"]
    assert events == [ranks[0], "begin anew", *ranks[1:], *ranks]


def test_a_replica_that_dies_while_there_are_no_ranks_starts_with_new_ones(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a run there are none any more, and while a run goes back there are none yet."""
    monkeypatch.setattr("ray.kill", lambda handle: None)
    config = adapted()
    placement = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
    launcher = ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS)
    pool = launcher.teacher_pools()["teacher"]
    launcher.end_trainers()
    dead = next(iter(pool._replicas))
    pool._lose(dead, ActorDied(dead.name, "killed"))
    asked = recorders["TeacherActor"].of("trainer")
    assert len(asked) == 3
    monkeypatch.setattr(
        subject, "answers_of_ranks", lambda *a, refs, **k: [("10.0.0.1", 7)] * len(refs)
    )
    [(_, first), _] = launcher.restart_trainers()
    assert recorders["TeacherActor"].of("trainer") == [*asked, first]


def test_who_waits_for_a_rank_has_no_limit_of_its_own(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replica would be ended, and the rank that hangs would be asked again."""
    policies: list[Any] = []
    monkeypatch.setattr(subject, "TeacherPool", lambda *a, **k: policies.append(a[3]))
    base = adapted()
    recorded = replace(base.teacher, cache=CacheMode.replay, cache_dir="answers")
    for config in (base, replace(base, teacher=recorded)):
        placement = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
        ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS).teacher_pools()
    assert [policy.answer_timeout_s for policy in policies] == [None, 900.0]


def test_recorded_answers_are_asked_of_no_rank(recorders: dict[str, Recorder]) -> None:
    for mode, asked in ((CacheMode.record, True), (CacheMode.replay, False)):
        config = adapted()
        teacher = replace(config.teacher, cache=mode, cache_dir="answers")
        config = replace(config, teacher=teacher)
        placement = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
        ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS)
        given = recorders["TeacherActor"].of("trainer")[-3:]
        assert [one is not None for one in given] == [asked] * 3


def test_others_compute_themselves(recorders: dict[str, Recorder]) -> None:
    launcher = with_handles(make_launcher())
    launcher.teacher_pools()
    launcher.watch.get = pytest.fail  # type: ignore[method-assign]
    launcher.ask_new_trainers()
    assert recorders["TeacherActor"].of("trainer") == [None, None]


def test_an_engine_has_an_adapter_only_where_a_trainer_brings_it(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = adapted()
    config = replace(config, teacher=replace(config.teacher, kind="hf", path="teacher"))
    cluster = Cluster((Node("here", 8, 1 << 36),))
    placement = plan_placement(config, cluster)
    monkeypatch.setattr("ray.kill", lambda handle: None)
    launcher = ActorLauncher(placement.settle(config), placement, vocab_size=TOKENS)
    monkeypatch.setattr(launcher.watch, "get_all", lambda pairs, **_: [None])
    launcher.rollout_pool()
    launcher.teacher_as_rollout_pool()
    alone = plan_placement(config, cluster, roles=("rollout",))
    ActorLauncher(alone.settle(config), alone, vocab_size=TOKENS, roles=("rollout",))
    students = recorders["RolloutActor"].of("student")
    found = [(student.path, student.lora.rank) for student in students]
    assert found == [("student", 8)] * 2 + [("teacher", 0)] + [("student", 0)] * 2


def placed_in(placement: str, **gpus: float) -> tuple[ActorLauncher, list[str]]:
    """A launcher, and what its actors are asked for, in order."""
    config = replace(CONFIG, cluster=ClusterSettings(placement=PlacementChoice(placement)))
    plan = plan_placement(config, Cluster((Node("here", 8, 1 << 36),)))
    launcher = ActorLauncher(plan.settle(config), plan, vocab_size=TOKENS)
    asked: list[str] = []

    class Asked(Handle):
        def __getattr__(self, method: str) -> Remote:
            def call(*args: Any) -> Any:
                asked.append(" ".join([self.name, method, *args[:1]]))
                return self.name, method, *args

            return Remote(call)

    start = launcher._start

    def started(actor: Any) -> None:
        start(actor)
        asked.append(f"{actor.name} started")
        launcher._actors[actor.role][-1] = (actor.name, Asked(actor.name))

    launcher._start = started  # type: ignore[method-assign]
    watch: Any = launcher.watch
    watch.get = lambda ref, owner, **_: ("10.0.0.1", 7) if ref[1] == "address" else ref
    watch.get_all = lambda pairs, **_: [ref for ref, owner in pairs]
    return launcher, asked


@pytest.mark.parametrize("placement", ["shared", "turns"])
def test_on_the_same_gpus_one_role_loads_after_another(
    recorders: dict[str, Recorder], placement: str
) -> None:
    launcher, asked = placed_in(placement)
    assert asked == []
    assert set(launcher.ready()) == {"teacher", "coder"}
    sleep = placement == "turns"
    teachers_sleep = ["teacher-0 sleep", "teacher-coder-0 sleep"]
    assert asked == [
        *("rollout-0 started", "rollout-1 started", "rollout-0 ready", "rollout-1 ready"),
        *(["rollout-0 sleep", "rollout-1 sleep"] if sleep else []),
        *("teacher-0 started", "teacher-coder-0 started", "teacher-0 ready"),
        "teacher-coder-0 ready",
        *(["rollout-0 sleep", "rollout-1 sleep", *teachers_sleep] if sleep else []),
        *("trainer-0 started", "trainer-1 started", "trainer-0 address"),
        *("trainer-0 setup 10.0.0.1", "trainer-1 setup 10.0.0.1"),
        # Whoever was started again meanwhile sleeps, too.
        *(["trainer-0 call sleep", "trainer-1 call sleep"] if sleep else []),
        *(["rollout-0 sleep", "rollout-1 sleep", *teachers_sleep] if sleep else []),
    ]


@pytest.mark.parametrize("placement", list(PlacementChoice))
def test_who_takes_turns_is_told_so(
    recorders: dict[str, Recorder],
    monkeypatch: pytest.MonkeyPatch,
    placement: PlacementChoice,
) -> None:
    made: list[bool] = []
    monkeypatch.setattr(subject, "TeacherPool", lambda *a, sleeps, **k: made.append(sleeps))
    launcher, _ = placed_in(placement.value)
    if placement is not PlacementChoice.separate:  # there all are started at once
        launcher.ready()
    sleeps = placement is PlacementChoice.turns
    for name in ("RolloutActor", "TeacherActor"):
        assert recorders[name].of("sleeps") == [sleeps] * 2, name
    launcher.teacher_pools()
    assert made == [sleeps] * 2
    monkeypatch.setattr(launcher.watch, "hand_over", lambda name: Reference(), raising=False)
    assert launcher.rollout_pool()._writers.asleep is sleeps
    assert launcher.trainer_group()._asleep is sleeps


def test_who_asks_others_is_never_put_to_sleep(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would wake it: its pool gives it work in everybody's turn, behind a cache too."""
    server = {"kind": "http", "url": "http://host:8000/v1", "cache": "record", "cache_dir": "kept"}
    monkeypatch.setattr(
        f"{__name__}.CONFIG",
        replace(CONFIG, teacher=replace(CONFIG.teacher, path="t"), teachers={"coder": server}),
    )
    launcher, asked = placed_in("turns")
    launcher.ready()
    assert "teacher-0 sleep" in asked
    assert "teacher-coder-0 sleep" not in asked
    pools = launcher.teacher_pools()
    assert [pools[name]._sleeps for name in ("teacher", "coder")] == [True, False]


def test_a_rank_beside_a_teacher_is_told_its_share(recorders: dict[str, Recorder]) -> None:
    cluster = ClusterSettings(placement=PlacementChoice.shared, teacher_beside=Beside.trainer)
    config = replace(
        CONFIG,
        cluster=cluster,
        rollout=replace(CONFIG.rollout, gpus_per_actor=1),
        trainer=replace(CONFIG.trainer, gpus_per_rank=1),
        teacher=replace(CONFIG.teacher, gpus_per_replica=0.2),
        teachers={"coder": {"path": "coder", "gpus_per_replica": 0.3}},
    )
    plan = plan_placement(config, Cluster((Node("here", 8, 1 << 36, gpus=4),)))
    launcher = ActorLauncher(plan.settle(config), plan, vocab_size=TOKENS)
    launcher._start_all(["trainer", "teacher"])
    assert recorders["TrainerActor"].of("gpu_share") == [0.5, 1.0]
    given = {name: recorders[name].options_given for name in ("TrainerActor", "TeacherActor")}
    assert [[one["num_gpus"] for one in own] for own in given.values()] == [[0.5, 1], [0.2, 0.3]]
    places = {
        name: [one["scheduling_strategy"].placement_group_bundle_index for one in own]
        for name, own in given.items()
    }
    # Both teachers' first replicas are beside the first rank.
    assert places["TeacherActor"] == [places["TrainerActor"][0]] * 2
