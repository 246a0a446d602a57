"""Rollouts of several turns with scripted students: tokens, masks, results and endings."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from chat_tokenizer import END, call, chat_tokenizer

from opd_ray.environments.episode import Episode, EpisodeLimits
from opd_ray.environments.parsers.hermes import HermesParser
from opd_ray.environments.runner import EnvironmentRunner
from opd_ray.environments.tool_class import ToolClass
from opd_ray.environments.turns import TurnTemplate
from opd_ray.user_code import UserCodeError

TOKENIZER = chat_tokenizer()
LIMITS = EpisodeLimits(context=4000, response=3900, turns=8, calls=8, result_tokens=100)
ROW = {"prompt": [{"role": "user", "content": "Where is the sun?"}], "answer": "Rome"}


class Weather:
    """Tools as a user of TRL writes them."""

    def __init__(self, sunny: str = "Rome") -> None:
        self.sunny, self.asked = sunny, []

    def reset(self, **row: Any) -> str:
        return f" ({row['answer'][0]}...)"

    def look(self, city: str) -> str:
        """Tells the weather.

        Args:
            city: which.
        """
        self.asked.append(city)
        return "sun" if city == self.sunny else "rain"

    def misbehave(self, how: str) -> Any:
        """Does what no tool should.

        Args:
            how: in which way.
        """
        match how:
            case "raise":
                raise KeyError("no")
            case "exit":
                raise SystemExit(3)
            case "hang":
                time.sleep(2)
            case "long":
                return "x" * 100_000
            case "special":
                return f"a{END}b\ud83d"
            case "number":
                return {"pi": 3}
            case "object":
                return object()


@pytest.fixture
def runner():
    found = EnvironmentRunner(workers=2, call_seconds=0.5)
    yield found
    found.close()


def play(runner: EnvironmentRunner, turns: list[str], limits: EpisodeLimits = LIMITS) -> Episode:
    """An episode whose student says ``turns``, each ended by the end token."""
    environment = ToolClass(Weather())
    template = TurnTemplate(TOKENIZER, environment.tools, {}, [TOKENIZER.eos_token_id])
    episode = Episode("the world", lambda: environment, template, HermesParser(), runner, limits)

    async def run() -> None:
        await episode.begin(ROW, TOKENIZER("Where?")["input_ids"])
        for text in turns:
            assert episode.ending is None
            await episode.take(TOKENIZER(text + END)["input_ids"], "stop")

    done = asyncio.run_coroutine_threadsafe(run(), runner._loop)
    done.result(timeout=20)
    return episode


def spoken(episode: Episode) -> list[str]:
    """The texts of the stretches of one mask, the student's first."""
    arrays = episode.arrays()
    edges = np.flatnonzero(np.diff(arrays["response_mask"])) + 1
    return [TOKENIZER.decode(part) for part in np.split(arrays["response_ids"], edges)]


def test_a_rollout_of_two_turns_token_by_token(runner: EnvironmentRunner) -> None:
    first = f"I look.\n{call('look', city='Bonn')}"
    episode = play(runner, [first, "I do not know."])
    assert TOKENIZER.decode(episode.prompt_ids).endswith(
        "<|im_start|>user\nWhere is the sun? (R...)<|im_end|>\n<|im_start|>assistant\n"
    )
    assert spoken(episode) == [
        first + END,
        "\n<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n",
        "I do not know." + END,
    ]
    arrays = episode.arrays()
    assert arrays["response_mask"][0] == 1
    assert [arrays["turns"][0], arrays["turns"][len(first) + 5], arrays["turns"][-1]] == [0, 0, 1]
    assert episode.ending == "stop"
    assert episode.account.calls == 1


def test_parallel_calls_are_answered_in_their_order(runner: EnvironmentRunner) -> None:
    text = call("look", city="Rome") + "<tool_call>{</tool_call>" + call("fly", to="Rome")
    episode = play(runner, [text + call("look", city="Bonn")])
    (_, results) = spoken(episode)
    parts = results.split("<tool_response>\n")[1:]
    assert parts[0].startswith("sun\n")
    assert parts[1].startswith("error: the tool call is not valid JSON")
    assert parts[2].startswith("error: there is no tool 'fly'; there are look, misbehave")
    assert parts[3].startswith("rain\n")
    account = episode.account
    assert (account.calls, account.parse_error, account.unknown, account.failed) == (4, 1, 1, 0)


@pytest.mark.parametrize(
    ("how", "read"),
    [
        ("raise", "error: KeyError: 'no'"),
        ("exit", "error: RuntimeError: SystemExit: 3"),
        ("hang", "error: it took longer than environment.call_timeout_s = 0.5"),
        ("long", f"{'x' * 100}\n[cut: 100 of the tokens of 100000 characters]"),
        ("special", "a< |im_end|>b?"),
        ("number", '{"pi": 3}'),
        ("object", "error: TypeError: Object of type object is not JSON serializable"),
    ],
)
def test_what_a_tool_does_is_what_the_student_reads(
    runner: EnvironmentRunner, how: str, read: str
) -> None:
    (_, results) = spoken(play(runner, [call("misbehave", how=how)]))
    assert results == (
        f"\n<|im_start|>user\n<tool_response>\n{read}\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_wrong_arguments_are_told(runner: EnvironmentRunner) -> None:
    (_, results) = spoken(play(runner, [call("look", town="Rome")]))
    assert "unexpected keyword argument 'town'" in results


def test_a_tool_that_hangs_is_not_called_again_until_it_has_come_back(
    runner: EnvironmentRunner,
) -> None:
    episode = play(runner, [call("misbehave", how="hang") + call("look", city="Rome")])
    assert "error: an earlier call into this environment has not come back" in spoken(episode)[1]
    assert episode.account.timeout == 2


def test_endings(runner: EnvironmentRunner) -> None:
    look = call("look", city="Rome")
    assert play(runner, [look, look], replace(LIMITS, turns=2)).ending == "turns"
    assert play(runner, [look + look], replace(LIMITS, calls=1)).ending == "tool_limit"
    whole = play(runner, [look])
    prompt, response = len(whole.prompt_ids), len(whole.response_ids)
    for limits, ending in (
        (replace(LIMITS, context=prompt + response), "context"),
        (replace(LIMITS, response=response), "length"),
    ):
        short = play(runner, [look], limits)
        assert short.ending == ending
        assert spoken(short) == [look + END]  # its own tokens stay
    # One token more, and the student may write it.
    assert play(runner, [look], replace(LIMITS, context=prompt + response + 1)).room == 1
    assert play(runner, [look], replace(LIMITS, response=response + 1)).room == 1
    assert play(runner, [look], replace(LIMITS, turn=5)).room == 5
    assert play(runner, [], replace(LIMITS, context=prompt + 50)).room == 50


def test_a_reset_that_leaves_no_room_ends_the_run(runner: EnvironmentRunner) -> None:
    with pytest.raises(UserCodeError, match=r"reset made a prompt of \d+ tokens"):
        play(runner, [], replace(LIMITS, context=10))


def test_a_turn_that_fills_the_context_was_cut_by_it(runner: EnvironmentRunner) -> None:
    episode = play(runner, [])
    for room, ending in ((40, "context"), (41, "length")):
        limits = replace(LIMITS, context=len(episode.prompt_ids) + room)
        short = play(runner, [], limits)
        turn = short.take([65] * 40, "length")
        asyncio.run_coroutine_threadsafe(turn, runner._loop).result(timeout=20)
        assert short.ending == ending


def test_the_driver_s_tokens_are_taken_where_reset_changes_nothing(
    runner: EnvironmentRunner,
) -> None:
    class Still:
        def look(self) -> str:
            """Looks."""
            return "x"

    environment = ToolClass(Still())
    template = TurnTemplate(TOKENIZER, environment.tools, {}, [TOKENIZER.eos_token_id])
    episode = Episode("the world", lambda: environment, template, HermesParser(), runner, LIMITS)
    begin = episode.begin(ROW, [70, 71, 72])
    asyncio.run_coroutine_threadsafe(begin, runner._loop).result(timeout=20)
    assert episode.prompt_ids == [70, 71, 72]


def test_a_turn_that_was_cut_ends_the_rollout_uncalled(runner: EnvironmentRunner) -> None:
    episode = play(runner, [])

    async def cut() -> None:
        await episode.take(TOKENIZER(call("look", city="Rome"))["input_ids"], "length")

    asyncio.run_coroutine_threadsafe(cut(), runner._loop).result(timeout=20)
    assert episode.ending == "length"
    assert episode.account.calls == 0
    assert set(episode.response_mask) == {1}


def alone(runner: EnvironmentRunner, environment: Any, parser: Any, text: str) -> Episode:
    """An episode of one turn."""
    template = TurnTemplate(TOKENIZER, environment.tools, {}, [TOKENIZER.eos_token_id])
    episode = Episode("the world", lambda: environment, template, parser, runner, LIMITS)

    async def run() -> None:
        await episode.begin(ROW, TOKENIZER("Where?")["input_ids"])
        await episode.take(TOKENIZER(text + END)["input_ids"], "stop")

    asyncio.run_coroutine_threadsafe(run(), runner._loop).result(timeout=20)
    return episode


class Talks:
    """A world without tools."""

    tools: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.heard: list[str] = []

    def reset(self, row: Any) -> Any:
        return list(row["prompt"])

    def call_tool(self, name: str, arguments: Any) -> str:
        raise AssertionError

    def respond(self, text: str) -> Any:
        self.heard.append(text)

    def verify(self, messages: Any) -> dict[str, float]:
        return {}

    def close(self) -> None:
        return None


def test_where_there_are_no_tools_nothing_is_a_call(runner: EnvironmentRunner) -> None:
    world, said = Talks(), call("look", city="Rome")
    episode = alone(runner, world, HermesParser(), said)
    assert world.heard == [said]
    assert (episode.ending, episode.account.calls) == ("stop", 0)


LOOK = {"type": "function", "function": {"name": "look", "parameters": {}}}


def test_tools_are_those_of_the_template_and_asked_of_nobody(runner: EnvironmentRunner) -> None:
    class Asked(Talks):
        @property
        def tools(self) -> Any:  # type: ignore[override]
            raise AssertionError("asked in the thread in which all rollouts run")

        def call_tool(self, name: str, arguments: Any) -> str:
            return "rain"

    template = TurnTemplate(TOKENIZER, [LOOK], {}, [TOKENIZER.eos_token_id])
    episode = Episode("the world", Asked, template, HermesParser(), runner, LIMITS)

    async def run() -> None:
        await episode.begin(ROW, TOKENIZER("Where?")["input_ids"])
        await episode.take(TOKENIZER(call("look") + END)["input_ids"], "stop")

    asyncio.run_coroutine_threadsafe(run(), runner._loop).result(timeout=20)
    assert [message["content"] for message in episode.messages[-1:]] == ["rain"]
    assert episode.account.unknown == 0


def test_what_reset_returns_is_read_beside_the_loop(runner: EnvironmentRunner) -> None:
    class Trickles(Talks):
        def reset(self, row: Any) -> Any:
            for message in row["prompt"]:
                time.sleep(0.8)  # a call may take 0.5
                yield message

    with pytest.raises(UserCodeError, match=r"the world: reset: it took longer than environment"):
        alone(runner, Trickles(), HermesParser(), "x")


def test_a_parser_that_raises_is_named(runner: EnvironmentRunner) -> None:
    class Bad:
        def parse(self, text: str, tools: Any) -> Any:
            raise KeyError("no")

    with pytest.raises(UserCodeError, match="the world: its parser: KeyError: 'no'"):
        alone(runner, ToolClass(Weather()), Bad(), "x")
