"""A replica whose answers a trainer rank computes, and a rank that still loads, or hangs."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Remote

import actors.teacher.kinds.students_base as subject
from actors.teacher.kinds.students_base import StudentsBase
from actors.trainer.actor import TrainerActor
from opd_ray.config.schema import LossSettings, StudentSettings, SyncSettings, TrainerSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConnectionLost


class Rank:
    """A rank whose calls are their own answers, and are written down."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> Remote:
        return Remote(lambda *args: self.calls.append(method) or (method, *args))


def test_a_rank_is_waited_for_before_it_is_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.ray, "get", lambda ref: ref)
    monkeypatch.setattr(subject.ray, "wait", lambda refs, timeout: (refs, []))
    first, second, settings = Rank(), Rank(), TeacherSettings()
    teacher: Any = StudentsBase(settings, first, vocab_size=9, own_topk=2)
    assert first.calls == ["up", "judge"]
    assert teacher.info() == ("judge", settings, 9, 2)
    teacher.ask(second)
    assert second.calls == ["up", "judge"]
    assert teacher.score([]) == ("score", [])
    assert second.calls == ["up", "judge", "score"]


def plain_rank() -> Any:
    """A rank's actor without Ray, before its engine is up."""
    plain: Any = TrainerActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    return plain(
        StudentSettings(path="student"),
        TrainerSettings(answer_timeout_s=40.0),
        LossSettings(),
        SyncSettings(),
        rank=0,
        vocab_size=9,
    )


def test_a_rank_is_up_once_its_engine_is() -> None:
    rank = plain_rank()
    seen: list[bool] = []

    def make(master: tuple[str, int]) -> Any:
        seen.append(rank._is_up.is_set())
        return SimpleNamespace(engine=SimpleNamespace(weights=partial(iter, ())))

    rank._make_trainer = make
    rank.setup("10.0.0.1", 7)
    assert rank.up() == 40.0
    assert seen == [False]


def test_a_rank_tells_how_long_it_has_been_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    rank, clock = plain_rank(), iter([100.0, 107.0])
    monkeypatch.setattr("actors.trainer.actor.time.monotonic", lambda: next(clock))
    rank._base = SimpleNamespace(score=lambda requests: [rank.scoring_seconds()])
    assert rank.scoring_seconds() == 0.0
    assert rank.score([]) == [7.0]
    assert rank.scoring_seconds() == 0.0


class Waits:
    """Ray for a replica whose rank tells, look by look, how long it has been at the answer.

    None: it tells nothing, as its process is stopped. After the last look the answer is there.
    """

    def __init__(self, *looks: float | None) -> None:
        self.looks = list(looks)

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        if len(refs) == 1:
            return ([] if self.looks else refs), []
        assert timeout == 40.0
        return ([] if self.looks[0] is None else refs[1:]), []

    def get(self, ref: Any) -> Any:
        if ref[0] == "scoring_seconds":
            return self.looks.pop(0)
        return 40.0 if ref[0] == "up" else ref


@pytest.mark.parametrize(
    ("looks", "hangs"),
    [
        ([], False),
        ([0.0] * 1000, False),  # a step of the run's comes before it, which has its own limit
        ([0.0, 3.0, 40.0], False),
        ([0.0, 31.0, 41.0], True),
        ([0.0, None], True),
    ],
)
def test_a_rank_that_is_at_an_answer_for_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, looks: list[float | None], hangs: bool
) -> None:
    ray = Waits(*looks)
    monkeypatch.setattr(subject.ray, "get", ray.get)
    monkeypatch.setattr(subject.ray, "wait", ray.wait)
    teacher: Any = StudentsBase(TeacherSettings(), Rank())
    if not hangs:
        assert teacher.score([]) == ("score", [])
        return
    with pytest.raises(ConnectionLost, match=r"longer than trainer.answer_timeout_s = 40 s"):
        teacher.score([])
