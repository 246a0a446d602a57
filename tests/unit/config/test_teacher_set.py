"""Several teachers in a configuration: what is inherited, merged, settled and refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.cluster.placement import plan_placement
from opd_ray.config.choices import CacheMode, Dtype, SignalChoice
from opd_ray.config.load import load_config, to_yaml
from opd_ray.config.resolved_teachers import NamedTeacher, WorkingTeacher
from opd_ray.config.schema import Config, StudentSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConfigError
from opd_ray.preflight.config import config_problems


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    for name in ("student", "a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"vocab_size": 100}))
    return {name: str(tmp_path / name) for name in ("student", "a", "b")}


def config_of(paths: dict[str, str], **changes: Any) -> Config:
    teacher = TeacherSettings(path=paths["a"], topk=8, **changes.pop("teacher", {}))
    return replace(
        Config(student=StudentSettings(path=paths["student"]), teacher=teacher), **changes
    )


def routed(paths: dict[str, str], **own: Any) -> Config:
    """Two sources, the second with teacher ``b``."""
    return config_of(
        paths,
        teachers={"b": {"path": paths["b"], **own}},
        routes={"one": "teacher", "two": "b"},
    )


def ensemble(paths: dict[str, str], **members: float) -> Config:
    named = {name: {"path": paths["b" if name == "b" else "a"]} for name in members}
    base = config_of(paths, teachers=named)
    return replace(base, teacher=replace(base.teacher, kind="ensemble", path=None, members=members))


def test_a_named_teacher_differs_in_its_keys_alone(paths: dict[str, str]) -> None:
    config = routed(paths, dtype="bfloat16", replicas=3)
    assert config_problems(config) == []
    named = config.teacher_set.named["b"]
    own = {"path": paths["b"], "dtype": Dtype.bfloat16, "replicas": 3, "name": "b"}
    assert asdict(named) == {**asdict(config.teacher), **own}
    assert list(config.teacher_set.working) == ["teacher", "b"]
    assert config.teacher_set.routes == {"one": "teacher", "two": "b"}


def test_without_routes_the_section_teacher_judges_everything(paths: dict[str, str]) -> None:
    teachers = config_of(paths).teacher_set
    assert (list(teachers.working), teachers.routes) == (["teacher"], {})


def test_two_names_with_equal_settings_are_one_teacher(paths: dict[str, str]) -> None:
    config = config_of(
        paths,
        teachers={"again": {"path": paths["a"], "threads": 2}, "b": {"path": paths["b"]}},
        routes={"x": "again", "y": "b", "z": "teacher"},
    )
    assert config_problems(config) == []
    teachers = config.teacher_set
    assert list(teachers.working) == ["again", "b"]
    assert teachers.routes == {"x": "again", "y": "b", "z": "again"}
    # The placement's CPUs and threads do not part them again.
    cluster = Cluster((Node("n", 8, 10**12),))
    plan = plan_placement(config, cluster)
    assert [a.name for a in plan.actors if a.role == "teacher"] == [
        "teacher-again-0",
        "teacher-b-0",
    ]
    settled = plan.settle(config).teacher_set
    assert list(settled.working) == ["again", "b"]
    assert settled.working["again"].settings.threads == 2
    assert settled.working["b"].settings.threads >= 1
    assert settled.routes == {"x": "again", "y": "b", "z": "again"}


def test_members_are_merged_and_their_weights_divided(paths: dict[str, str]) -> None:
    config = ensemble(paths, a=1.0, b=2.0, again=5.0)
    assert config_problems(config) == []
    members = config.teacher_set.working["teacher"].members
    assert [(m.name, m.weight, m.settings.kind) for m in members] == [
        ("a", 6 / 8, "hf"),
        ("b", 2 / 8, "hf"),
    ]
    assert list(config.teacher_set.models) == ["teachers.a", "teachers.b"]


def test_members_of_one_model_load_once_however_they_are_written(
    paths: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(paths["a"])
    config = ensemble(paths, a=1.0, slash=1.0, link=1.0, copies=1.0, coarse=1.0)
    teachers = {
        **config.teachers,
        "slash": {"path": paths["a"] + "/"},
        "link": {"path": str(tmp_path / "link")},
        # A member lives in the ensemble's processes: these say nothing about it.
        "copies": {"path": paths["a"], "replicas": 3, "max_restarts": 5, "store_bytes": 7},
        "coarse": {"path": paths["a"], "dtype": "bfloat16"},
    }
    config = replace(config, teachers=teachers)
    assert config_problems(config) == []
    members = config.teacher_set.working["teacher"].members
    assert [(m.name, m.weight) for m in members] == [("a", 0.8), ("coarse", 0.2)]
    # Two teachers by route with different replicas are two; another way to write a folder is not.
    routes = {"x": "a", "y": "slash", "z": "copies"}
    used = {name: teachers[name] for name in ("a", "slash", "copies")}
    routed = config_of(paths, teachers=used, routes=routes)
    assert list(routed.teacher_set.working) == ["a", "copies"]


def test_members_take_the_signal_of_their_ensemble(paths: dict[str, str]) -> None:
    config = ensemble(paths, a=1.0, again=1.0)
    teachers = {"a": {"path": paths["a"], "topk": 3}, "again": {"path": paths["a"], "topk": 9}}
    # k says nothing where hidden states travel.
    main = replace(config.teacher, signal=SignalChoice.hidden)
    config = replace(config, teachers=teachers, teacher=main)
    assert config_problems(config) == []
    [member] = config.teacher_set.working["teacher"].members
    assert (member.name, member.weight, member.settings.topk) == ("a", 1.0, 8)


def test_the_student_as_its_own_teacher(paths: dict[str, str]) -> None:
    config = config_of(paths)
    config = replace(config, teacher=TeacherSettings(kind="self", follow_decay=0.99))
    assert config_problems(config) == []
    assert config.teacher_set.first.path == paths["student"]
    # Beside it a model is a model, and follows nobody.
    config = replace(
        config, teachers={"b": {"path": paths["b"]}}, routes={"x": "b", "y": "teacher"}
    )
    assert config_problems(config) == []
    other = config.teacher_set.working["b"].settings
    assert (other.kind, other.follow_decay) == ("hf", None)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"teachers": {"b": {"pth": "x"}}}, ["teachers.b: unknown key pth: did you mean path?"]),
        ({"teachers": {"b": {"topk": "many"}}}, ["teachers.b: topk = 'many'", "an integer"]),
        ({"teachers": {"teacher": {}}}, ["teachers.teacher", "choose another"]),
        ({"teachers": {"b": {}}}, ["teachers.b: nothing uses it"]),
        ({"routes": {"x": "b"}}, ["routes.x = 'b': no such teacher; there is teacher"]),
        (
            {"teachers": {"b": {"topk": 4}}, "routes": {"x": "b"}},
            ["teachers.b.topk = 4 with teacher.topk = 8", "leave it out"],
        ),
        (
            {"teachers": {"b": {"signal": "sampled"}}, "routes": {"x": "b"}},
            ["teachers.b.signal = sampled with teacher.signal = topk"],
        ),
        (
            {"teachers": {"b": {"replicas": 0}}, "routes": {"x": "b"}},
            ["teachers.b.replicas = 0: must be at least 1"],
        ),
        (
            {"teachers": {"b": {"kind": "vlm"}}, "routes": {"x": "b"}},
            ["teachers.b.kind = 'vlm'"],
        ),
        (
            {"teachers": {"b": {"kind": "class"}}, "routes": {"x": "b"}},
            ["teachers.b.class_path = null"],
        ),
        (
            {"teachers": {"b": {"path": "/nowhere/b"}}, "routes": {"x": "b"}},
            ["teachers.b.path = '/nowhere/b'"],
        ),
    ],
)
def test_refused(paths: dict[str, str], change: dict[str, Any], parts: list[str]) -> None:
    text = "\n".join(config_problems(config_of(paths, **change)))
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"members": {}}, "teacher.members is empty"),
        ({"members": {"c": 1.0}}, "teacher.members.c: no such teacher in teachers; there is a, b"),
        ({"members": {"a": 0.0, "b": 1.0}}, "teacher.members.a = 0: a weight must be above 0"),
        ({"gpus_per_replica": 2.0}, "teacher.gpus_per_replica = 2"),
        ({"follow_decay": 0.5}, "it belongs to teacher.kind=self"),
    ],
)
def test_refused_ensembles(paths: dict[str, str], change: dict[str, Any], part: str) -> None:
    config = ensemble(paths, a=1.0, b=1.0)
    config = replace(config, teacher=replace(config.teacher, **change))
    assert part in "\n".join(config_problems(config))


@pytest.mark.parametrize("kind", ["ensemble", "self", "vllm", "http"])
def test_kinds_that_are_no_members(paths: dict[str, str], kind: str) -> None:
    config = ensemble(paths, a=1.0, b=1.0)
    config = replace(config, teachers={**config.teachers, "b": {"kind": kind}})
    text = "\n".join(config_problems(config))
    assert f"teacher.members.b: a teacher of kind {kind!r} cannot be part of an ensemble" in text


def test_members_with_hidden_states_have_one_dtype(paths: dict[str, str]) -> None:
    config = ensemble(paths, a=1.0, b=1.0)
    config = replace(config, teacher=replace(config.teacher, signal=SignalChoice.hidden))
    assert config_problems(config) == []
    own = {**config.teachers["b"], "dtype": "bfloat16"}
    text = "\n".join(config_problems(replace(config, teachers={**config.teachers, "b": own})))
    assert "teacher.members: their dtypes are bfloat16, float32" in text


def test_each_teacher_has_a_cache_of_its_own(paths: dict[str, str], tmp_path: Path) -> None:
    recorded: dict[str, Any] = {"cache": CacheMode.record, "cache_dir": str(tmp_path / "a")}
    config = config_of(
        paths, teacher=recorded, teachers={"b": {"path": paths["b"]}}, routes={"x": "b"}
    )
    assert config.teacher_set.named["b"].cache is CacheMode.off
    assert config_problems(config) == []
    for other in ({"kind": "ensemble", "members": {"b": 1.0}}, {"kind": "self"}):
        more = {"path": None, "follow_decay": 0.5 if other["kind"] == "self" else None, **other}
        changed = replace(config, routes={}, teacher=replace(config.teacher, **more))
        assert "teacher.cache = record with" in "\n".join(config_problems(changed))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_has_a_range(paths: dict[str, str], decay: float) -> None:
    config = replace(config_of(paths), teacher=TeacherSettings(kind="self", follow_decay=decay))
    assert "must lie in [0, 1)" in "\n".join(config_problems(config))


def test_why_a_replica_is_not_started_again() -> None:
    assert WorkingTeacher(TeacherSettings(max_restarts=2)).restarts == (
        2,
        "teacher.max_restarts = 2 allows no further start",
    )
    _, why = WorkingTeacher(NamedTeacher(name="b")).restarts
    assert why.startswith("teachers.b.max_restarts = 1 ")
    follower = TeacherSettings(kind="self", follow_decay=0.9, max_restarts=1)
    allowed, why = WorkingTeacher(follower).restarts
    assert allowed == 0
    assert "max_restarts" not in why
    assert "follows the student" in why


def test_self_has_no_path_of_its_own(paths: dict[str, str]) -> None:
    config = replace(config_of(paths), teacher=TeacherSettings(kind="self", path=paths["a"]))
    assert "with kind self" in "\n".join(config_problems(config))


def test_written_and_read_again(paths: dict[str, str], tmp_path: Path) -> None:
    config = routed(paths, dtype="bfloat16")
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    assert load_config(str(file)) == config
    changed = load_config(str(file), ["teachers.b.replicas=2", "routes={p.jsonl: b, q: teacher}"])
    assert changed.teachers["b"]["replicas"] == 2
    assert changed.routes["p.jsonl"] == "b"
    with pytest.raises(ConfigError, match="routes"):
        load_config(str(file), ["routes=b"])


def test_teachers_are_resolved_once_a_config(paths: dict[str, str]) -> None:
    config = routed(paths)
    assert config.teacher_set is config.teacher_set
    assert "teacher_set" not in to_yaml(config)
    assert config == routed(paths)
    changed = replace(config, teachers={"b": {"path": paths["b"], "replicas": 4}})
    assert changed.teacher_set.working["b"].settings.replicas == 4
    assert config.teacher_set.working["b"].settings.replicas == 1


def test_the_placement_reaches_the_members_of_an_ensemble(paths: dict[str, str]) -> None:
    config = ensemble(paths, a=1.0, b=1.0)
    # Of 6 cores, shared by one rollout actor and one teacher.
    plan = plan_placement(config, Cluster((Node("n", 6, 10**12),)))
    teacher = plan.settle(config).teacher_set.working["teacher"]
    assert teacher.settings.threads == 3
    assert [member.settings.threads for member in teacher.members] == [3, 3]
    assert config.teacher_set.working["teacher"].settings.threads == 0


def test_rollouts_alone_are_placed_whatever_the_teachers_are(paths: dict[str, str]) -> None:
    config = config_of(paths, routes={"x": "nobody"}, teacher={"kind": "oracle"})
    plan = plan_placement(config, Cluster((Node("n", 6, 10**12),)), roles=("rollout",))
    assert plan.settle(config).rollout.threads == 6


def test_one_teacher_alone_is_checked_under_its_own_name(paths: dict[str, str]) -> None:
    config = routed(paths, replicas=0, signal="sampled")
    config = replace(config, eval=replace(config.eval, kl_prompts=0))
    config = replace(config, teacher=replace(config.teacher, batch_tokens=0, max_restarts=-1))
    alone = config.with_teachers(config.teacher_set.only("b"))
    assert config_problems(alone) == [
        "teachers.b.replicas = 0: must be at least 1",
        "teachers.b.max_restarts = -1: must be at least 0",
        "teachers.b.batch_tokens = 0: must be at least 1",
    ]


def test_what_is_inherited_is_told_once(paths: dict[str, str]) -> None:
    config = routed(paths, replicas=0)
    config = replace(config, teacher=replace(config.teacher, batch_tokens=0))
    assert config_problems(config) == [
        "teacher.batch_tokens = 0: must be at least 1",
        "teachers.b.replicas = 0: must be at least 1",
    ]


def test_each_teacher_is_checked_in_the_words_of_its_section(paths: dict[str, str]) -> None:
    for own, expected in (
        ({"gpus_per_replica": 2}, "teachers.b.gpus_per_replica = 2 with teachers.b.kind = 'hf'"),
        ({"kind": "vllm", "signal": "hidden"}, "signal = hidden with teachers.b.kind = vllm"),
        ({"kind": "http", "url": "host:1"}, "teachers.b.url = 'host:1': write it as"),
        ({"kind": "class", "class_path": "Mine"}, "teachers.b.class_path = 'Mine': write it as"),
        ({"kind": "actor"}, "cluster.address = null with teachers.b.kind = 'actor'"),
        ({"cache_dir": "c"}, "teachers.b.cache_dir = 'c' with teachers.b.cache = off"),
        ({"model": "m"}, "teachers.b.model = 'm' with teachers.b.kind = 'hf': it belongs to"),
        ({"kind": "vlm"}, "teachers.b.kind = 'vlm': did you mean vllm? there is hf, vllm, http"),
    ):
        text = "\n".join(config_problems(routed(paths, **own)))
        assert expected in text, own
