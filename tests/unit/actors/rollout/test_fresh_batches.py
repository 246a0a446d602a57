"""A rollout actor of a deterministic run begins every batch as a new engine would."""

from __future__ import annotations

import math
import queue
from typing import Any

import pytest

from actors.rollout.actor import RolloutActor
from opd_ray.types import Sampling


class Engine:
    """Writes nothing; says what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def has_unfinished(self) -> bool:
        return False

    def forget_prefixes(self) -> None:
        self.told.append("forget")

    def add(self, requests: Any, sampling: Sampling, record: bool) -> None:
        self.told.append("add")


@pytest.mark.parametrize(
    ("deterministic", "told"),
    [(False, ["add", "add"]), (True, ["forget", "add", "forget", "add"])],
)
def test_prefixes_are_forgotten_before_every_batch(deterministic: bool, told: list[str]) -> None:
    plain = RolloutActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = plain.__new__(plain)
    actor._engine, actor._deterministic = Engine(), deterministic
    actor._topk_refs, actor._inbox = [], queue.SimpleQueue()
    actor._sign_after_s, actor._given_up = math.inf, -1
    for _ in range(2):
        assert list(actor.generate([], Sampling(), True, False)) == []
    assert actor._engine.told == told
