"""Which methods of a named actor are called, and with what; no cluster is needed for that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.teacher.kinds.ray_actor import ActorTeacher
from actors.teacher.protocol import Wanted
from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import TeacherInfo

WANTED = Wanted(SignalChoice.sampled, topk=7, own_topk=3)


def calls_of(methods: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What an ActorTeacher calls when it is made, scores nothing and gives its output head."""
    calls: list[Any] = []
    replies = {"info": TeacherInfo("theirs", 20, 64, ("topk",)), "score": [], "output_head": "head"}

    def method(name: str) -> SimpleNamespace:
        def remote(*given: Any) -> Any:
            calls.append((name, *given))
            return replies[name.removesuffix("_as")]

        return SimpleNamespace(remote=remote)

    actor = SimpleNamespace(**{name: method(name) for name in methods})
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    monkeypatch.setattr(ray, "get", lambda reply: reply)
    settings = TeacherSettings(actor_name="served", signal=SignalChoice.sampled, topk=7)
    teacher = ActorTeacher(settings, vocab_size=20, own_topk=3)
    assert teacher.score([]) == []
    assert teacher.output_head() == "head"
    return calls


def test_an_actor_that_several_runs_share_is_told_what_this_run_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    methods = ["info", "info_as", "score", "score_as", "output_head"]
    assert calls_of(methods, monkeypatch) == [
        ("info_as", WANTED),
        ("score_as", [], WANTED),
        ("output_head",),
    ]


def test_an_actor_with_the_methods_of_a_teacher_alone_is_asked_plainly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert calls_of(["info", "score", "output_head"], monkeypatch) == [
        ("info",),
        ("score", []),
        ("output_head",),
    ]
