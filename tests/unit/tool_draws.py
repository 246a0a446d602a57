"""What random students write, and what random tools do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
from chat_tokenizer import END

from opd_ray.environments.environment import Message, ToolResult

CALL_SECONDS = 0.3
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
