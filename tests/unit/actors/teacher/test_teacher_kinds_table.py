"""The record of every kind of teacher, and what makes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module

import pytest

from actors.process import teacher_environment
from actors.teacher.protocol import TeacherError
from actors.teacher.registry import _MAKERS, make_teacher
from opd_ray.config.choices import SignalChoice, Support
from opd_ray.config.resolved_teachers import NamedTeacher
from opd_ray.config.schema import Config, LossSettings
from opd_ray.config.teacher import TRAITS, TeacherKind, TeacherSettings, batch_budget
from opd_ray.errors import OpdError
from opd_ray.preflight import models
from opd_ray.preflight.models import ask_server, asked_servers
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo

KEYS = {field.name for field in fields(TeacherSettings)}


def test_every_kind_has_a_record_and_a_maker() -> None:
    values = ["hf", "vllm", "http", "class", "actor", "ensemble", "self"]
    assert list(TRAITS) == values
    assert sorted([*_MAKERS, "ensemble"]) == sorted(values)
    for place in _MAKERS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name)), place


def test_records_name_keys_there_are() -> None:
    for kind, traits in TRAITS.items():
        needed = {traits.needs[0]} if traits.needs else set()
        assert needed | set(traits.own_keys) <= KEYS, kind
        assert (traits.gpu_remedy == "") == (traits.most_gpus > 1), kind


@pytest.mark.parametrize(
    ("trait", "kinds"),
    [
        ("runs_model", "hf vllm"),
        ("vllm_engine", "vllm"),
        ("asks_server", "http"),
        ("asks_cluster", "actor"),
        ("user_made", "class actor"),
        ("may_bound", "http actor"),
        ("students_files", "self"),
        ("mixes_members", "ensemble"),
        ("of_a_run", "ensemble self"),
        ("not_member", "vllm http ensemble self"),
    ],
)
def test_what_each_kind_is(trait: str, kinds: str) -> None:
    assert [kind for kind in TeacherKind if getattr(TRAITS[kind], trait)] == kinds.split()


def test_who_gives_hidden_states_and_runs_on_gpus() -> None:
    hidden = [kind for kind in TeacherKind if SignalChoice.hidden in TRAITS[kind].signals]
    assert hidden == ["hf", "class", "actor", "ensemble", "self"]
    most = {kind: TRAITS[kind].most_gpus for kind in TeacherKind}
    assert [kind for kind, gpus in most.items() if gpus == 0] == ["http", "actor"]
    assert [kind for kind, gpus in most.items() if gpus == 1] == ["hf", "ensemble", "self"]


def test_a_process_and_a_batch_are_those_of_the_kind() -> None:
    assert "VLLM_NO_USAGE_STATS" in teacher_environment(TeacherSettings(kind="vllm", threads=2))
    assert "VLLM_NO_USAGE_STATS" not in teacher_environment(TeacherSettings(threads=2))
    # 16 requests of at most 1,000 tokens each are under way at once.
    assert batch_budget(TeacherSettings(kind="http", concurrency=16), 1000) == 16_000
    assert batch_budget(TeacherSettings(concurrency=16, batch_tokens=8192), 1000) == 8192


class Wide:
    """A teacher of ten tokens."""

    def info(self) -> TeacherInfo:
        return TeacherInfo("wide", 10, 64, ("topk",))

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]: ...

    def close(self) -> None: ...


def test_a_class_with_more_tokens_than_the_student_is_refused() -> None:
    own = TeacherSettings(kind="class", class_path=f"{__name__}:Wide")
    assert make_teacher(own, vocab_size=10).info().vocab_size == 10
    with pytest.raises(TeacherError, match="says 10 tokens, student and teacher share 9"):
        make_teacher(own, vocab_size=9)


def test_a_server_is_asked_unless_its_answers_are_replayed() -> None:
    replayed = {"cache": "replay", "cache_dir": "answers", "url": "http://b/v1"}
    config = Config(
        teacher=TeacherSettings(kind="http", url="http://a/v1"),
        teachers={"b": replayed, "c": {"kind": "hf", "path": "c"}, "d": {"url": "http://d/v1"}},
        routes={"w": "teacher", "x": "b", "y": "c", "z": "d"},
    )
    assert [model.url for model in asked_servers(config)] == ["http://a/v1", "http://d/v1"]


def test_a_server_gives_no_values_of_the_students_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before it is asked, unless it names the whole vocabulary."""
    monkeypatch.setattr(models, "check_server", lambda *given, **more: "asked")

    def asked(named: int, support: Support | None) -> object:
        teacher = NamedTeacher(kind="http", url="http://a/v1", topk=4, named_tokens=named, name="b")
        config = Config(teacher=teacher, loss=LossSettings(support=support))
        return ask_server(config, teacher, None, 20)

    for support in (Support.student, Support.union):
        said = (
            rf"loss.support = {support} with teachers.b.kind = 'http'.*its own 19 likeliest.*"
            "loss.support=teacher, teachers.b.kind=vllm, or teachers.b.named_tokens=20"
        )
        with pytest.raises(TeacherError, match=said):
            asked(19, support)
        assert asked(20, support) == asked(64, support) == "asked"
    assert asked(8, Support.teacher) == asked(8, None) == "asked"


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (NamedTeacher(kind="class", class_path="Mine", name="b"), "teachers.b.class_path = 'Mine'"),
        (TeacherSettings(kind="class", class_path="Mine"), "teacher.class_path = 'Mine'"),
        (
            NamedTeacher(kind="http", url="http://h/v1", api_key_env="OPD_RAY_NO_KEY", name="b"),
            "teachers.b.api_key_env = 'OPD_RAY_NO_KEY'",
        ),
    ],
)
def test_a_kind_speaks_of_its_own_section(teacher: TeacherSettings, said: str) -> None:
    with pytest.raises(OpdError) as error:
        make_teacher(teacher, vocab_size=9)
    assert str(error.value).startswith(said)
