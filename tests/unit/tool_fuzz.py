"""Random students and random tools, and what must hold whatever they do.

By hand, with any number of calls and any tokenizer that has ChatML's special tokens:

    PYTHONPATH=. python tests/unit/tool_fuzz.py 10000 [SEED] [FOLDER]
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from random import Random
from typing import Any

import numpy as np
from chat_tokenizer import END, TURNS, chat_tokenizer

from opd_ray.environments.calls import CallParser, ToolCall
from opd_ray.environments.environment import Message, ToolResult
from opd_ray.environments.episode import Episode, EpisodeLimits
from opd_ray.environments.parsers.registry import get_parser
from opd_ray.environments.runner import EnvironmentRunner
from opd_ray.environments.turns import TurnTemplate

CALL_SECONDS = 0.3
# Some templates write the name that a result is of.
NAMING_TEMPLATE = TURNS.replace("{{ m.content }}\n</tool", "{{ m.name }} {{ m.content }}\n</tool")
ENDINGS = {"stop", "length", "context", "turns", "tool_limit"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {}},
            },
        },
    }
    for name in ("act", "act_later", "look")
]
BITS = [
    *("Rome", " ", "\n", "é", "日本", "😀", "\x00", "\x1b[2J", "\u202e", "\ud83d", "\ufffd", "17"),
    *(END, "<|im_start|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<tool_response>"),
    *("</tool_response>", "<think>", "</think>", "<function=act>", "</function>", "{}", '"', "\\"),
    *("<|python_tag|>", "{% raw %}", "{{ 7 * 7 }}", "<|im_start|>assistant\n", "< |im_end|>"),
]


class Sly(str):
    """Text that says something else when it is asked."""

    def __str__(self) -> str:
        raise ZeroDivisionError("no text")

    def encode(self, *args: Any, **named: Any) -> bytes:
        raise ZeroDivisionError("no bytes")

    def __getitem__(self, key: Any) -> str:
        raise ZeroDivisionError("no parts")


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError("no words")


class Undecided:
    def __bool__(self) -> bool:
        raise ZeroDivisionError("neither")


def text(draw: Random, most: int = 8) -> str:
    return "".join(draw.choices(BITS, k=draw.randrange(most)))


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def endless(n: int = 0) -> int:
    return endless(n + 1)


def circle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def raised(error: BaseException) -> Any:
    raise error


OUTCOMES: list[Callable[[Random], Any]] = [
    *[text] * 6,
    lambda draw: text(draw, 200),
    lambda draw: text(draw) * draw.choice([1, 1000, 50_000]),
    lambda draw: Sly(text(draw)),
    lambda draw: ToolResult(Sly(text(draw)), done=draw.random() < 0.2),
    lambda draw: ToolResult(draw.choice([None, 3, b"x", ["a"]])),  # type: ignore[arg-type]
    lambda draw: ToolResult("x", done=draw.choice([Undecided(), 1, np.array([1, 2])])),
    lambda draw: draw.choice([None, 3, 2.5, True, float("nan"), float("-inf"), 10**4000, 10**9000]),
    lambda draw: {text(draw): [text(draw), None], "x": nested(draw.choice([3, 500, 50_000]))},
    lambda draw: draw.choice([b"\xff", {1, 2}, object(), Undecided(), np.array([1.0]), circle()]),
    lambda draw: (n for n in range(3)),
    lambda draw: {(1, 2): 3},
    lambda draw: [{"type": "text", "text": text(draw)}, {"type": "image"}],
    lambda draw: next(iter([])),
    lambda draw: endless(),
    lambda draw: raised(draw.choice([KeyError, SystemExit, KeyboardInterrupt, GeneratorExit])(3)),
    lambda draw: raised(draw.choice([Mute, MemoryError, StopIteration, StopAsyncIteration])()),
    lambda draw: raised(asyncio.CancelledError()),
    lambda draw: raised(ValueError(text(draw, 300))),
    lambda draw: raised(ExceptionGroup("several", [ValueError("a"), KeyError("b")])),
]


class Wild:
    """An environment whose tools do anything. What was called is in ``seen``."""

    tools = TOOLS

    def __init__(self, draw: Random, hangs: float) -> None:
        self._draw, self._hangs = draw, hangs
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        return [
            {
                "role": "user",
                "content": f"Go on, {text(self._draw)}.".encode(errors="replace").decode(),
            }
        ]

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        self.seen.append((name, arguments))
        if self._draw.random() < self._hangs:
            time.sleep(2 * CALL_SECONDS)
        if name == "act_later":
            return self._later()
        return self._draw.choice(OUTCOMES)(self._draw)

    async def _later(self) -> Any:
        await asyncio.sleep(0)
        if self._draw.random() < self._hangs:
            await asyncio.sleep(60)
        return self._draw.choice(OUTCOMES)(self._draw)

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        return {"seen": len(self.seen)}

    def close(self) -> None:
        self.seen = []


class Talkative(Wild):
    """One that answers turns without a call."""

    def respond(self, said: str) -> list[Message] | None:
        if self._draw.random() < 0.4:
            return None
        return [{"role": "user", "content": text(self._draw, 60)}]


def value(draw: Random) -> str:
    """What stands for a JSON value."""
    match draw.randrange(12):
        case 0:
            return draw.choice(["NaN", "-Infinity", "1e999", "9" * 5000, "9" * 4000, "1e-400"])
        case 1:
            return draw.choice(["[" * 5000, "[" * 150 + "]" * 150, '{"a":' * 300, nested_text(50)])
        case 2:
            return draw.choice(
                ['"\\ud83d"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\x"', '"\n"', "'a'"]
            )
        case 3:
            return draw.choice(["null", "true", "None", "[]", "{}", "", ",", '{"a": 1, "a": 2}'])
        case 4:
            return text(draw)
        case _:
            return json.dumps(text(draw), ensure_ascii=draw.random() < 0.5)


def nested_text(depth: int) -> str:
    return "[" * depth + "]" * depth


def name_of(draw: Random) -> str:
    known = draw.random() < 0.8
    return draw.choice(["act", "act_later", "look"]) if known else text(draw)


def call(draw: Random, form: str) -> str:
    """A call, or nearly one."""
    name, keys = name_of(draw), draw.sample(["a", "b", "c", text(draw)], draw.randrange(3))
    if form == "qwen3_coder":
        inside = "".join(f"<parameter={key}>\n{value(draw)}\n</parameter>\n" for key in keys)
        whole = f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"
    else:
        inside = ", ".join(f"{json.dumps(key)}: {value(draw)}" for key in keys)
        key = "arguments" if form == "hermes" else "parameters"
        whole = f'{{"name": {json.dumps(name)}, "{key}": {{{inside}}}}}'
        whole = f"<tool_call>\n{whole}\n</tool_call>" if form == "hermes" else whole
    if draw.random() < 0.15:  # broken anywhere
        at = draw.randrange(len(whole))
        whole = whole[:at] + text(draw, 3) + whole[at + draw.randrange(5) :]
    return whole


def turn(draw: Random, form: str) -> str:
    """What a student writes."""
    said = [text(draw)] if draw.random() < 0.4 else []
    if draw.random() < 0.2:
        said = ["<think>", text(draw), "</think>" if draw.random() < 0.9 else ""]
    between = "; " if form == "llama3_json" else "\n"
    said += [between.join(call(draw, form) for _ in range(draw.choice([0, 1, 1, 1, 2, 3, 7])))]
    if draw.random() < 0.1:
        said += [text(draw)]
    return "".join(said).encode(errors="replace").decode()


class Fuzz:
    """Episodes one after another, each checked after every turn.

    Args:
        seed: of all that is drawn.
        tokenizer: with ChatML's special tokens.
        hangs: share of the calls that take longer than they may.
    """

    def __init__(self, seed: int, tokenizer: Any, hangs: float) -> None:
        self._draw, self._tokenizer, self._hangs = Random(seed), tokenizer, hangs
        self._end = tokenizer.convert_tokens_to_ids(END)
        self._special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []

    def run(self, calls: int) -> None:
        """Play until there were so many calls."""
        handler = _Complaints(self.complaints)
        logging.getLogger("asyncio").addHandler(handler)
        before, threading.excepthook = threading.excepthook, self._thread_failed
        runner = EnvironmentRunner(workers=4, call_seconds=CALL_SECONDS)
        try:
            while self.counts["calls"] < calls:
                runner.start("one", lambda: self._play(runner))
                outcome = runner.ended.get(timeout=120)[1]
                if isinstance(outcome, BaseException):
                    raise outcome
        finally:
            runner.close()
            gc.collect()  # tasks complain when they are forgotten
            threading.excepthook = before
            logging.getLogger("asyncio").removeHandler(handler)

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        self.complaints.append(f"a thread: {failed.exc_type.__name__}: {failed.exc_value}")

    async def _play(self, runner: EnvironmentRunner) -> None:
        draw = self._draw
        form = draw.choice(["hermes", "llama3_json", "qwen3_coder"])
        kind = draw.choice([Wild, Wild, Talkative])
        world = kind(Random(draw.random()), self._hangs)
        limits = EpisodeLimits(
            context=draw.choice([600, 6000, 200_000]),
            response=draw.choice([400, 5000, 150_000]),
            turns=draw.randrange(1, 8),
            calls=draw.randrange(1, 20),
            result_tokens=draw.choice([1, 20, 100]),
            turn=draw.choice([None, None, 300]),
        )
        parser = get_parser(form, "parser")
        options = {"chat_template": NAMING_TEMPLATE}
        template = TurnTemplate(self._tokenizer, TOOLS, options, [self._end])
        episode = Episode("the world", lambda: world, template, parser, runner, limits)
        await episode.begin({"prompt": []}, [])
        sampled: list[list[int]] = []
        while episode.ending is None:
            assert episode.room >= 1
            ids = self._ids(turn(draw, form), episode.room)
            sampled.append(ids)
            before = len(episode.messages), episode.account.calls, len(world.seen)
            await episode.take(ids, "stop" if ids[-1] == self._end else "length")
            self._check_tokens(episode, sampled)
            self._check_answers(episode, parser, ids, world, before)
        await episode.finish()
        assert episode.ending in ENDINGS
        self.counts[episode.ending] += 1
        self.counts["turns"] += len(sampled)
        self.counts["rollouts"] += 1
        for name, number in asdict(episode.account).items():
            self.counts[name] += number

    def _ids(self, said: str, room: int) -> list[int]:
        """Said as a student would: cut where there is no room, ended by the end token else."""
        ids = self._tokenizer(said, add_special_tokens=False)["input_ids"]
        ids = [n for n in ids if n != self._end]
        if self._draw.random() < 0.1:  # a student may sample any token
            others = sorted(self._special - {self._end})
            ids.insert(self._draw.randrange(len(ids) + 1), self._draw.choice(others))
        return [*ids, self._end][:room]

    def _check_tokens(self, episode: Episode, sampled: list[list[int]]) -> None:
        arrays = episode.arrays()
        ids, mask, turns = arrays["response_ids"], arrays["response_mask"], arrays["turns"]
        limits = episode.limits
        assert len(ids) == len(mask) == len(turns) <= limits.response
        assert len(episode.prompt_ids) + len(ids) <= limits.context
        assert ids[mask == 1].tolist() == [n for part in sampled for n in part]
        for number, part in enumerate(sampled):
            own = turns == number
            assert ids[own & (mask == 1)].tolist() == part
            assert mask[own].tolist() == sorted(mask[own].tolist(), reverse=True)
            others = ids[own & (mask == 0)].tolist()
            special = [n for n in others if n in self._special]
            if number < len(sampled) - 1 or episode.ending is None:
                begin, end = (
                    self._tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", END)
                )
                assert special == [begin, end, begin]
            else:
                assert not others
        assert turns.tolist() == sorted(turns.tolist())

    def _check_answers(
        self,
        episode: Episode,
        parser: CallParser,
        ids: list[int],
        world: Wild,
        before: tuple[int, int, int],
    ) -> None:
        account, (messages, calls, seen) = episode.account, before
        for message in episode.messages[messages:]:
            json.dumps(message, ensure_ascii=False).encode()
        if ids[-1] != self._end:
            assert episode.messages[messages:][1:] == []
            return
        found = parser.parse(self._tokenizer.decode(ids[:-1]), TOOLS).calls
        assert account.calls - calls <= len(found)
        assert account.calls <= episode.limits.calls
        known = [
            (c.name, json.dumps(c.arguments))
            for c in found[: account.calls - calls]
            if isinstance(c, ToolCall) and c.name in ("act", "act_later", "look")
        ]
        called = [(name, json.dumps(arguments)) for name, arguments in world.seen[seen:]]
        assert called == known if not account.timeout else called == known[: len(called)]
        if episode.ending is not None:
            return
        follows = episode.messages[messages + 1 :]
        for message in follows:
            content = message["content"]
            assert not any(token in content for token in (END, "<|im_start|>"))
            kept = content.rpartition("\n[cut: ")[0] or content
            assert len(kept) <= 64 * episode.limits.result_tokens + 20
        if found:
            assert [m["role"] for m in follows] == ["tool"] * len(found)
            assert [m["tool_call_id"] for m in follows] == [
                f"call{n:05d}" for n in range(calls, account.calls)
            ]
            assert [
                m.get("name") for m in follows if m.get("name") in ("act", "act_later", "look")
            ] == [name for name, _ in known]


class _Complaints(logging.Handler):
    def __init__(self, complaints: list[str]) -> None:
        super().__init__()
        self._complaints = complaints

    def emit(self, record: logging.LogRecord) -> None:
        self._complaints.append(record.getMessage())


def main() -> None:
    """Play as the command line says, and print what there was."""
    calls = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    tokenizer = chat_tokenizer()
    if len(sys.argv) > 3:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])
    begin = time.perf_counter()
    fuzz = Fuzz(seed, tokenizer, hangs=0.002)
    fuzz.run(calls)
    print(f"{time.perf_counter() - begin:.1f} s", dict(fuzz.counts), fuzz.complaints)


if __name__ == "__main__":
    main()
