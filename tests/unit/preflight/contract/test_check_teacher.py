"""``check-teacher`` on a config's teachers: what is asked of which, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from actors.teacher.kinds.hf import HfTeacher
from opd_ray.config.load import load_config
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.preflight.contract import check as teacher_check
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo

PAIR = pair_folder()


class Own(HfTeacher):
    """A teacher of the user's own that says ``fingerprint`` of its tokenizer."""

    def __init__(self, fingerprint: str | None) -> None:
        settings = TeacherSettings(path=str(PAIR / "teacher"), topk=4)
        super().__init__(settings, vocab_size=24)
        self._fingerprint = fingerprint

    def info(self) -> TeacherInfo:
        return TeacherInfo("mine", 24, 128, ("topk",), tokenizer_hash=self._fingerprint)


class Writing(Own):
    """Takes the prompt's ids for its own."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        for request in requests:
            request.prompt_ids[0] = 2
        return super().score(requests)


def violations(*overrides: str) -> list[str]:
    return teacher_check.check_teacher(
        load_config("demo", ["teacher.signal=topk", "teacher.topk=4", *overrides])
    )


def own(fingerprint: str) -> tuple[str, ...]:
    return (
        "teacher.kind=class",
        "teacher.path=null",
        "eval.teacher_accuracy=false",
        f"teacher.class_path={__name__}:Own",
        f"teacher.arguments={{fingerprint: {fingerprint}}}",
    )


def test_a_tokenizer_of_another_model_is_named() -> None:
    [one] = violations(*own("another"))
    assert one.startswith("teacher 'mine': its tokenizer's fingerprint is another, the student's")


def test_a_teacher_that_writes_into_its_requests_is_named_as_it_would_fail_in_a_run() -> None:
    writing = [text.replace(":Own", ":Writing") for text in own("null")]
    found = violations(*writing)
    assert "ValueError: assignment destination is read-only" in found[0]
    assert f"({__file__}, line " in found[0]


def test_a_teacher_that_does_not_tell_its_tokenizer_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert violations(*own("null")) == []
    assert "'mine': its tokenizer was not compared" in capsys.readouterr().out
    assert violations() == []
    assert capsys.readouterr().out == ""


def test_an_ensemble_may_be_as_coarse_as_its_coarsest_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def probed(teacher: object, settings: TeacherSettings, *_: object, **__: object) -> list[str]:
        asked.append((settings.kind, settings.dtype.value))
        return []

    monkeypatch.setattr(teacher_check, "contract_violations", probed)
    members = "teachers={a: {dtype: float32, path: %s}, b: {dtype: bfloat16, path: %s}}"
    mixed = ("teacher.kind=ensemble", "teacher.path=null", "teacher.members={a: 1, b: 1}")
    paths = (PAIR / "teacher", PAIR / "student")
    assert violations(*mixed, "eval.teacher_accuracy=false", members % paths) == []
    assert asked == [("ensemble", "bfloat16")]
