"""Rollouts of several turns in front of a scripted engine: what is asked of it, what comes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from chat_tokenizer import END, call, chat_tokenizer

from actors.rollout.episodes import EpisodeEngine
from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings
from opd_ray.environments.environment import Message
from opd_ray.types import EpisodeStart, Rollout, RolloutRequest, Sampling, TopK
from opd_ray.user_code import UserCodeError

TOKENIZER = chat_tokenizer()
GATE = threading.Event()  # a call waits for it
COUNT = threading.Lock()
END_ID = TOKENIZER.convert_tokens_to_ids(END)


class World:
    """Adds one at every look; ``fails`` names a method that raises."""

    open = 0  # of all that were reset, those that were not closed

    def __init__(self, fails: str = "") -> None:
        self._fails, self._count, self._is_open = fails, 0, False

    def reset(self, **row: Any) -> None:
        self._count = 0
        if self._fails == "reset":
            raise LookupError("no such world")
        with COUNT:
            World.open += 1
        self._is_open = True

    def close(self) -> None:
        with COUNT:
            World.open -= self._is_open

    def look(self, at: str) -> str:
        """Looks.

        Args:
            at: where.
        """
        if at == "gate":
            GATE.wait(5)
        self._count += 1
        return f"{at}{self._count}"

    def verify(self, messages: Sequence[Message]) -> dict[str, Any]:
        return {"looks": "many" if self._fails == "verify" else self._count}


class ScriptedEngine:
    """Writes texts in the order in which each rollout asks, two tokens' scores told by place."""

    context_length = 4000

    def __init__(self, texts: dict[str, list[tuple[str, str]]]) -> None:
        self._texts = {name: list(turns) for name, turns in texts.items()}
        self._waiting: list[RolloutRequest] = []
        self.asked: list[RolloutRequest] = []
        self.longest: list[int] = []
        self.hold = False  # whether it writes nothing

    def add(self, requests: Sequence[RolloutRequest], sampling: Sampling, record: bool) -> None:
        self.asked += requests
        self.longest += [sampling.max_tokens] * len(requests)
        self._waiting += requests

    def has_unfinished(self) -> bool:
        return bool(self._waiting)

    def abort(self) -> None:
        self._waiting.clear()

    def step(self) -> list[Rollout]:
        if self.hold:
            return []
        request = self._waiting.pop()
        text, reason = self._texts[request.rollout_id.partition("#")[0]].pop(0)
        ids = TOKENIZER(text)["input_ids"]
        count = len(ids)
        # Of every token a score that names prompt length and place.
        scores = (len(request.prompt_ids) + np.arange(count)).astype(np.float32)
        topk = TopK(np.array([[i, i + 1] for i in ids], np.int32), -np.ones((count, 2), np.float32))
        return [
            Rollout(
                *(request.rollout_id, request.prompt_id, request.sample, request.prompt_ids),
                np.array(ids, np.int32),
                *(np.ones(count, np.uint8), scores, -scores, reason, 7, topk),
                figures={"prompt_tokens": len(request.prompt_ids), "cached_tokens": 10},
            )
        ]


def request(name: str, source: str = "s", acts: bool = True) -> RolloutRequest:
    prompt = [{"role": "user", "content": "Look twice."}]
    start = EpisodeStart({"prompt": prompt, "answer": "2"}, {})
    ids = np.array(TOKENIZER("a prompt")["input_ids"], np.int32)
    return RolloutRequest(name, name, 0, ids, 5, source, start if acts else None)


def engine_of(
    texts: Any, in_rounds: bool = False, concurrent: int = 8, **settings: Any
) -> tuple[EpisodeEngine, ScriptedEngine]:
    inner = ScriptedEngine(texts)
    path = f"{__name__}:World"
    both = EnvironmentSet(replace(EnvironmentSettings(path=path), **settings), {})
    any_engine: Any = inner
    rounds = {"in_rounds": in_rounds}
    return EpisodeEngine(any_engine, both, TOKENIZER, [END_ID], concurrent, **rounds), inner


def run(engine: EpisodeEngine, requests: Sequence[RolloutRequest], **sampling: Any) -> Any:
    engine.add(requests, Sampling(**{"max_tokens": 1000, **sampling}), True)
    ended = []
    while engine.has_unfinished():
        ended += engine.step()
    return {rollout.rollout_id: rollout for rollout in ended}


TWO = {"a": [(call("look", at="x") + END, "stop"), ("done" + END, "stop")]}


def test_each_turn_is_asked_for_with_all_that_stands_before_it() -> None:
    engine, inner = engine_of(TWO)
    (rollout,) = run(engine, [request("a")]).values()
    first, second = inner.asked
    assert (first.rollout_id, second.rollout_id) == ("a#0", "a#1")
    assert first.prompt_ids.tolist() == TOKENIZER("a prompt")["input_ids"]
    whole = [*rollout.prompt_ids, *rollout.response_ids]
    last_turn = TOKENIZER("done" + END)["input_ids"]
    assert second.prompt_ids.tolist() == whole[: -len(last_turn)]
    assert first.seed != second.seed
    assert first.episode is second.episode is None
    # What the second turn may have is what the first and the result leave.
    assert inner.longest == [1000, 1000 - (len(second.prompt_ids) - len(first.prompt_ids))]
    assert not engine.has_unfinished()


def test_scores_and_topk_stand_at_the_students_tokens_alone() -> None:
    engine, inner = engine_of(TWO)
    (rollout,) = run(engine, [request("a")]).values()
    text = TOKENIZER.decode(rollout.response_ids)
    assert text == (
        f"{call('look', at='x')}{END}\n<|im_start|>user\n<tool_response>\nx1\n</tool_response>"
        f"{END}\n<|im_start|>assistant\ndone{END}"
    )
    first, last = (TOKENIZER(t)["input_ids"] for t, _ in TWO["a"])
    mask = rollout.response_mask.tolist()
    between = len(mask) - len(first) - len(last)
    assert mask == [1] * len(first) + [0] * between + [1] * len(last)
    assert rollout.turns.tolist() == [0] * (len(first) + between) + [1] * len(last)
    # The scripted score of a token is its place in the whole text.
    places = len(rollout.prompt_ids) + np.arange(len(mask))
    np.testing.assert_array_equal(rollout.entropy, places * rollout.response_mask)
    np.testing.assert_array_equal(rollout.logprob, -places * rollout.response_mask)
    assert rollout.topk.ids[:, 0].tolist() == first + last
    assert len(rollout.topk.logprobs) == len(rollout.rows) == len(first + last)
    assert (rollout.finish_reason, rollout.weights_version) == ("stop", 7)
    figures = rollout.figures
    assert figures["environment/looks"] == 1
    assert (figures["calls"], figures["failed"]) == (1, 0)
    assert figures["cached_tokens"] == 20
    assert figures["prompt_tokens"] == sum(len(r.prompt_ids) for r in inner.asked)


def test_rollouts_with_and_without_an_environment_run_side_by_side() -> None:
    engine, inner = engine_of({**TWO, "b": [("plain", "length")]})
    found = run(engine, [request("a"), request("b", acts=False)])
    assert found["b"].turns is None
    assert found["b"].response_ids.tolist() == TOKENIZER("plain")["input_ids"]
    assert "b" in [asked.rollout_id for asked in inner.asked]
    assert found["a"].turns.max() == 1


@pytest.mark.parametrize(
    ("fails", "text"),
    [("reset", "reset: LookupError: no such world"), ("verify", "verify: ValueError")],
)
def test_what_an_environment_raises_outside_of_tools_ends_the_run(fails: str, text: str) -> None:
    engine, _ = engine_of({"a": [("done" + END, "stop")]}, arguments={"fails": fails})
    with pytest.raises(UserCodeError, match=text) as raised:
        run(engine, [request("a")])
    assert str(raised.value).startswith(f"environment.path = '{__name__}:World'")


def test_a_source_without_an_environment_is_a_fault_of_the_run() -> None:
    inner: Any = ScriptedEngine({})
    none = EnvironmentSet(EnvironmentSettings(), {})
    engine = EpisodeEngine(inner, none, TOKENIZER, [END_ID], 8)
    with pytest.raises(ValueError, match="source 's' have no environment"):
        engine.add([request("a")], Sampling(), True)


@pytest.mark.parametrize("looks_at", ["x", "gate"])
def test_what_is_given_up_comes_again_as_if_it_had_not_been_asked_for(looks_at: str) -> None:
    """Given up while it is written, or while it waits for a call that comes back later."""
    World.open = 0
    turns = [(call("look", at=looks_at) + END, "stop"), ("done" + END, "stop")]
    engine, inner = engine_of({"a": turns})
    inner.hold = looks_at == "x"
    GATE.clear()
    engine.add([request("a")], Sampling(max_tokens=1000), True)
    while not inner.asked:
        assert engine.step() == []
    engine.abort()
    assert not engine.has_unfinished()
    inner._texts["a"], inner.hold = list(turns), False
    GATE.set()
    (rollout,) = run(engine, [request("a")]).values()
    assert rollout.figures["calls"] == 1
    assert rollout.figures["environment/looks"] == 1
    assert [one.rollout_id for one in inner.asked[-2:]] == ["a#0", "a#1"]
    # The world of the one that was given up is closed with the next ones, once its call is back.
    until = time.monotonic() + 10
    while World.open and time.monotonic() < until:
        inner._texts["a"] = [("done" + END, "stop")]
        run(engine, [request("a")])
    assert World.open == 0


class Slow(World):
    """A world in which looking at one thing takes long."""

    def __init__(self, slow: str) -> None:
        super().__init__()
        self._slow = slow

    def look(self, at: str) -> str:
        """Looks.

        Args:
            at: where; the slow one takes longer than all others.
        """
        if at == self._slow:
            time.sleep(0.05)
        return super().look(at)


class LastInFirstOut(ScriptedEngine):
    """Says in its list of turns also when the response without an environment is written."""

    def step(self) -> list[Rollout]:
        ended = super().step()
        if ended[0].rollout_id == "e":
            self.asked.append(replace(request("e"), rollout_id="e is written"))
        return ended


def in_rounds(slow: str, concurrent: int, *, rounds: bool = True) -> list[str]:
    """Which turns are asked of the engine, in their order, with one tool that is slow."""
    look, done = (lambda name: (call("look", at=name) + END, "stop")), ("done" + END, "stop")
    texts = {
        "a": [look("a"), look("a"), done],
        "b": [done],
        "c": [look("c"), done],
        "d": [look("d"), look("d"), done],
        "e": [("plain", "stop")],
    }
    inner: Any = LastInFirstOut(texts)
    settings = EnvironmentSettings(path=f"{__name__}:Slow", arguments={"slow": slow})
    both = EnvironmentSet(settings, {})
    engine = EpisodeEngine(inner, both, TOKENIZER, [END_ID], concurrent, in_rounds=rounds)
    requests = [request(name, acts=name != "e") for name in "abcde"]
    found = run(engine, requests)
    assert found.keys() == set("abcde")
    return [asked.rollout_id for asked in inner.asked]


@pytest.mark.parametrize("slow", ["", "a", "c", "d"])
def test_in_rounds_turns_are_written_together_however_long_calls_take(slow: str) -> None:
    assert in_rounds(slow, 8) == [
        *("e", "e is written"),
        *("a#0", "b#0", "c#0", "d#0"),
        *("a#1", "c#1", "d#1"),
        *("a#2", "d#2"),
    ]
    # With two at once: b leaves and c begins while a#2 is written, a leaves and d begins while c#1
    # is. Beginning and leaving take a round each.
    assert in_rounds(slow, 2) == [
        *("e", "e is written", "a#0", "b#0", "a#1", "a#2", "c#0", "c#1"),
        *("d#0", "d#1", "d#2"),
    ]


def test_without_rounds_a_slow_call_changes_the_order() -> None:
    assert in_rounds("a", 8, rounds=False) != in_rounds("d", 8, rounds=False)
