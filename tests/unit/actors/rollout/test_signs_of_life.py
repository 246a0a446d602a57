"""A rollout actor whose rollouts take long says now and then that it writes; its engine is fake."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from actors.rollout import actor as subject
from actors.rollout.actor import RolloutActor


class Engine:
    """Finishes nothing for so many steps, of a second each, then its only rollout."""

    def __init__(self, steps: int, clock: list[float]) -> None:
        self._steps, self._left, self._clock = steps, 0, clock

    def has_unfinished(self) -> bool:
        return self._left > 0

    def add(self, requests: Any, sampling: Any, record: bool) -> None:
        self._left = self._steps

    def step(self) -> list[Any]:
        self._clock[0] += 1.0
        self._left -= 1
        return [] if self._left else [Rollout()]


class Rollout:
    topk = None


def stream(steps: int, sign_after_s: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    clock = [0.0]
    monkeypatch.setattr(subject.time, "monotonic", lambda: clock[0])
    plain = RolloutActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = object.__new__(plain)
    actor._engine = Engine(steps, clock)
    actor._topk_refs, actor._deterministic = [], False
    actor._inbox = subject.queue.SimpleQueue()
    actor._sign_after_s = sign_after_s
    actor._given_up, actor._deterministic = -1, False
    items: Iterator[list[Any]] = actor.generate([], None, True, False)
    return items


def test_a_sign_comes_every_so_often_while_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [len(item) for item in stream(25, 9.5, monkeypatch)]
    assert items == [0, 0, 1]


def test_what_ends_is_sign_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(item) for item in stream(9, 9.5, monkeypatch)] == [1]


def test_without_a_limit_there_is_no_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(item) for item in stream(1000, math.inf, monkeypatch)] == [1]
