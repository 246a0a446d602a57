"""A rollout actor that gives up a batch, before, while and after it writes it; no Ray, no vLLM."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors.rollout.actor import RolloutActor

SAMPLING: Any = "sampling"


class Engine:
    """Ends one request a step, the oldest first; ``before_step`` is called before each."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.aborted: list[list[str]] = []
        self.before_step: Callable[[], None] = lambda: None

    def has_unfinished(self) -> bool:
        return bool(self.open)

    def add(self, requests: Sequence[str], sampling: Any, record: bool) -> None:
        self.open += requests

    def step(self) -> list[Any]:
        self.before_step()
        return [SimpleNamespace(name=self.open.pop(0), topk=None)]

    def abort(self) -> None:
        self.aborted.append(self.open)
        self.open = []


def actor_of() -> tuple[Any, Engine]:
    plain = RolloutActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = plain.__new__(plain)
    actor._engine = engine = Engine()
    actor._topk_refs, actor._inbox, actor._given_up = [], queue.SimpleQueue(), -1
    actor._sign_after_s, actor._deterministic = math.inf, False
    return actor, engine


def names(stream: Iterator[list[Any]]) -> list[str]:
    return [one.name for item in stream for one in item]


def test_a_batch_ends_at_the_next_step_after_it_was_given_up() -> None:
    actor, engine = actor_of()
    stream = actor.generate(["a", "b", "c"], SAMPLING, True, False, 1)
    assert next(stream)[0].name == "a"
    actor.abort(1)
    assert names(stream) == []
    assert engine.aborted == [["b", "c"]]
    assert names(actor.generate(["a", "b"], SAMPLING, True, False, 2)) == ["a", "b"]


def test_one_that_waits_for_requests_is_woken() -> None:
    actor, engine = actor_of()
    found: list[list[str]] = []
    stream = actor.generate([], SAMPLING, True, True, 1)
    reader = threading.Thread(target=lambda: found.append(names(stream)), daemon=True)
    reader.start()
    actor.abort(1)
    reader.join(5)
    assert found == [[]]
    assert engine.aborted == [[]]


@pytest.mark.parametrize("added", [0, 2])
def test_one_that_is_given_up_before_it_begins_takes_nothing_from_the_next(added: int) -> None:
    """Calls of the inbox overtake those of the engine."""
    actor, engine = actor_of()
    for number in range(added):
        actor.add([f"old {number}"], True, 1)
    actor.abort(1)
    actor.add(["b"], True, 2)
    actor.add([], False, 2)
    assert names(actor.generate(["old"], SAMPLING, True, True, 1)) == []
    assert engine.open == []
    assert names(actor.generate(["a"], SAMPLING, True, True, 2)) == ["a", "b"]


def test_one_that_has_ended_by_then_leaves_nothing_to_the_next() -> None:
    actor, engine = actor_of()
    assert names(actor.generate(["a"], SAMPLING, True, False, 1)) == ["a"]
    actor.abort(1)
    assert names(actor.generate(["b"], SAMPLING, True, False, 2)) == ["b"]
    actor.abort(2)
    actor.add(["d"], False, 3)
    assert names(actor.generate(["c"], SAMPLING, True, True, 3)) == ["c", "d"]
    assert engine.aborted == []


def test_requests_after_the_last_ones_are_still_an_error() -> None:
    actor, _ = actor_of()
    stream = actor.generate(["a"], SAMPLING, True, False, 1)
    actor.add(["b"], False, 1)
    with pytest.raises(RuntimeError, match="after its last ones"):
        names(stream)
