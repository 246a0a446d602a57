"""A teacher's actor is asked about rollouts of which some top-Ks are lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import OwnerDiedError

from actors.teacher import actor as subject
from actors.teacher.actor import TeacherActor
from opd_ray.types import RolloutScores, ScoreRequest, TopK, TopKLost


class Ref(str):
    """The name of a top-K, as a reference to it."""


TOPK = TopK(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32))


def scored(
    names: list[str], lost: set[str], monkeypatch: pytest.MonkeyPatch, signals: Any = None
) -> tuple[Any, Any]:
    """The answers, and what the teacher itself was asked; with ``signals`` deterministically."""

    def get(refs: Any) -> Any:
        one = isinstance(refs, Ref)
        for ref in [refs] if one else refs:
            if ref in lost:
                raise OwnerDiedError("00ff", None, "")
        return TOPK if one else [TOPK] * len(refs)

    monkeypatch.setattr(subject.ray, "get", get)
    monkeypatch.setattr(subject.ray, "ObjectRef", Ref)
    monkeypatch.setattr(subject.ray, "wait", lambda refs, num_returns: (refs, []))
    asked: list[ScoreRequest] = []

    def score(requests: list[ScoreRequest]) -> list[RolloutScores]:
        asked.extend(requests)
        return [RolloutScores(request.rollout_id, {}) for request in requests]

    plain = TeacherActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = object.__new__(plain)
    actor._server = SimpleNamespace(score=score, signals=signals)
    actor._deterministic = signals is not None
    ids = np.zeros(1, np.int32)
    topks: Any = [Ref(name) for name in names]
    requests = [ScoreRequest(name, ids, ids, topk) for name, topk in zip(names, topks, strict=True)]
    return actor.score(requests), asked


def test_what_is_there_is_scored_and_the_rest_is_said_to_be_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, asked = scored(["a", "b", "c"], {"b"}, monkeypatch)
    assert answers == [RolloutScores("a", {}), TopKLost("b"), RolloutScores("c", {})]
    assert [request.rollout_id for request in asked] == ["a", "c"]
    assert all(request.student_topk is TOPK for request in asked)


def test_all_may_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = scored(["a", "b"], {"a", "b"}, monkeypatch)
    assert answers == [TopKLost("a"), TopKLost("b")]
    assert asked == []


def test_a_top_k_that_is_no_reference_cannot_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.ray, "get", lambda refs: list(refs))
    plain = TeacherActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = object.__new__(plain)
    actor._deterministic = False
    asked: list[ScoreRequest] = []

    def score(requests: list[ScoreRequest]) -> list[RolloutScores]:
        asked.extend(requests)
        return [RolloutScores("a", {})]

    actor._server = SimpleNamespace(score=score)
    ids = np.zeros(1, np.int32)
    request = ScoreRequest("a", ids, ids, TOPK)
    assert actor.score([request]) == [RolloutScores("a", {})]
    assert asked == [request]


def test_in_a_deterministic_run_the_others_are_read_beside_what_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgotten: list[str] = []
    signals = SimpleNamespace(forget=forgotten.extend)
    answers, asked = scored(["a", "b", "c"], {"b"}, monkeypatch, signals)
    assert answers == [RolloutScores("a", {}), TopKLost("b"), RolloutScores("c", {})]
    assert [request.rollout_id for request in asked] == ["a", "b", "c"]
    assert asked[1].student_topk.ids.tolist() == [[0]]
    # One token in e: the mass of a top-K may not be above 1.
    assert asked[1].student_topk.logprobs.tolist() == [[-1.0]]
    assert forgotten == ["b"]


def test_in_a_deterministic_run_nothing_is_read_of_what_is_lost_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals = SimpleNamespace(forget=list)
    answers, asked = scored(["a", "b"], {"a", "b"}, monkeypatch, signals)
    assert (answers, asked) == ([TopKLost("a"), TopKLost("b")], [])
