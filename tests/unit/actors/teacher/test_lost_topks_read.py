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


def scored(names: list[str], lost: set[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The answers, and what the teacher itself was asked."""

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
    actor._server = SimpleNamespace(score=score)
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
    asked: list[ScoreRequest] = []

    def score(requests: list[ScoreRequest]) -> list[RolloutScores]:
        asked.extend(requests)
        return [RolloutScores("a", {})]

    actor._server = SimpleNamespace(score=score)
    ids = np.zeros(1, np.int32)
    request = ScoreRequest("a", ids, ids, TOPK)
    assert actor.score([request]) == [RolloutScores("a", {})]
    assert asked == [request]
