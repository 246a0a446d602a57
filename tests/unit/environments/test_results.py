"""What a student reads of results, and of an environment that hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from chat_tokenizer import END, call, chat_tokenizer

from opd_ray.environments.environment import Message
from opd_ray.environments.episode import Episode, EpisodeLimits
from opd_ray.environments.parsers.hermes import HermesParser
from opd_ray.environments.runner import EnvironmentRunner
from opd_ray.environments.turns import TurnTemplate

TOKENIZER = chat_tokenizer()
TOOL = {"type": "function", "function": {"name": "say", "parameters": None}}


class Says:
    """Says what it is to."""

    tools: Sequence[Any] = (TOOL,)

    def __init__(self, said: Any, gate: threading.Event | None = None) -> None:
        self._said, self._gate = said, gate

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        return [{"role": "user", "content": "Begin."}]

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        if self._gate is not None:
            self._gate.wait()
        return self._said

    def respond(self, text: str) -> list[Message]:
        return [{"role": "user", "content": "Yes?"}]

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        return {"good": 1.0}

    def close(self) -> None: ...


@pytest.fixture
def runner() -> Iterator[EnvironmentRunner]:
    found = EnvironmentRunner(workers=2, call_seconds=0.2)
    yield found
    found.close()


def play(
    runner: EnvironmentRunner, world: Says, *turns: str, tokens: int = 10, ends: str = END
) -> Episode:
    """An episode in which the student says ``turns``."""
    template = TurnTemplate(TOKENIZER, [TOOL], {}, TOKENIZER.convert_tokens_to_ids([END, ends]))
    limits = EpisodeLimits(context=4000, response=4000, turns=8, calls=8, result_tokens=tokens)
    episode = Episode("the world", lambda: world, template, HermesParser(), runner, limits)

    async def run() -> Episode:
        await episode.begin({"prompt": []}, [])
        for turn in turns:
            await episode.take(TOKENIZER(turn + END)["input_ids"], "stop")
        if episode.ending is not None:
            await episode.finish()
        return episode

    runner.start("one", run)
    played = runner.ended.get(timeout=60)[1]
    assert played is episode, played
    return episode


@pytest.mark.parametrize(
    ("said", "read", "cut"),
    [
        ("ten of it.", "ten of it.", 0),
        ("eleven ones", "eleven one\n[cut: 10 of 11 tokens]", 1),
        ("x" * 640, "x" * 10 + "\n[cut: 10 of 640 tokens]", 1),
        ("x" * 641, "x" * 10 + "\n[cut: 10 of the tokens of 641 characters]", 1),
        ("123456789é", "123456789\n[cut: 10 of 11 tokens]", 1),
        (f"a{END}b\ud83d", "a< |im_end\n[cut: 10 of 14 tokens]", 1),
        (" .  ,", " .  ,", 0),
    ],
)
def test_results_are_cut_in_tokens_and_say_so(
    runner: EnvironmentRunner, said: str, read: str, cut: int
) -> None:
    episode = play(runner, Says(said), call("say"))
    assert episode.messages[-1]["content"] == read
    assert episode.account.cut == cut


def test_a_token_that_ends_turns_is_words_in_a_result_even_if_it_is_not_special(
    runner: EnvironmentRunner,
) -> None:
    TOKENIZER.add_tokens(["<stop>"])
    assert play(runner, Says("a<stop>"), call("say"), ends="<stop>").messages[-1]["content"] == (
        "a< stop>"
    )
    assert play(runner, Says("a<stop>"), call("say")).messages[-1]["content"] == "a<stop>"


def test_the_name_of_no_tool_is_shortened_in_the_answer(runner: EnvironmentRunner) -> None:
    episode = play(runner, Says(""), call("x" * 1000), tokens=1000)
    assert episode.messages[-1]["content"] == (
        f"error: there is no tool 'x{'x' * 198}; there are say"
    )


def test_an_environment_that_hangs_in_a_tool_ends_its_rollout_alone(
    runner: EnvironmentRunner,
) -> None:
    gate = threading.Event()
    episode = play(runner, Says("", gate), call("say"), "And now?", tokens=200)
    gate.set()
    assert episode.messages[2]["content"] == (
        "error: it took longer than environment.call_timeout_s = 0.2"
    )
    assert episode.ending == "tool_limit"
    assert episode.account.timeout == 2
    assert episode.figures == {}
    assert play(runner, Says("")).ending is None


def test_the_loop_of_a_rollout_s_coroutines_is_closed_at_its_end(
    runner: EnvironmentRunner,
) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    class Quiet(Says):
        async def _figures(self) -> dict[str, float]:
            loops.append(asyncio.get_running_loop())
            return {"good": 2.0}

        def verify(self, messages: Sequence[Message]) -> Any:
            return self._figures()

        def respond(self, text: str) -> Any:
            return None

    episode = play(runner, Quiet(""), "Done.")
    assert episode.ending == "stop"
    assert episode.figures == {"good": 2.0}
    assert loops[0].is_closed()
