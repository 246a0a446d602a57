"""A replica whose answers a trainer rank computes, and the rank that still loads."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Remote

import actors.teacher.kinds.students_base as subject
from actors.teacher.kinds.students_base import StudentsBase
from actors.trainer.actor import TrainerActor
from opd_ray.config.schema import SyncSettings
from opd_ray.config.teacher import TeacherSettings


class Rank:
    """A rank whose calls are their own answers, and are written down."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> Remote:
        return Remote(lambda *args: self.calls.append(method) or (method, *args))


def test_a_rank_is_waited_for_before_it_is_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.ray, "get", lambda ref: ref)
    first, second, settings = Rank(), Rank(), TeacherSettings()
    teacher: Any = StudentsBase(settings, first, vocab_size=9, own_topk=2)
    assert first.calls == ["up", "judge"]
    assert teacher.info() == ("judge", settings, 9, 2)
    teacher.ask(second)
    assert second.calls == ["up", "judge"]
    assert teacher.score([]) == ("score", [])
    assert second.calls == ["up", "judge", "score"]


def test_a_rank_is_up_once_its_engine_is() -> None:
    plain: Any = TrainerActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    rank = object.__new__(plain)
    rank._is_up, rank._gpu_share, rank._rank, rank._sync = threading.Event(), 1.0, 0, SyncSettings()
    seen: list[bool] = []

    def make(master: tuple[str, int]) -> Any:
        seen.append(rank._is_up.is_set())
        return SimpleNamespace(engine=SimpleNamespace(weights=partial(iter, ())))

    rank._make_trainer = make
    rank.setup("10.0.0.1", 7)
    rank.up()
    assert seen == [False]
