"""Tool calls in what a student wrote, and what a parser of them is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from opd_ray.environments.environment import Message, ToolSchema

_DECODER = json.JSONDecoder()
_BEGINS = re.compile(r'[-{\["\dtfnNI]')
_MOST_NESTED = 100
_TOO_DEEP = f"nested more than {_MOST_NESTED} levels deep"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_END_OF_THINKING = "</think>"
_THINKING = "<think>"


@dataclass(frozen=True)
class ToolCall:
    """A call that can be made."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class BadCall:
    """What was meant as a call and cannot be made; ``problem`` is what the student reads."""

    written: str
    problem: str


@dataclass(frozen=True)
class AssistantTurn:
    """A turn of the student, taken apart."""

    content: str  # all that is no call
    calls: tuple[ToolCall | BadCall, ...]  # in the order in which they were written

    def message(self, first: int = 0) -> Message:
        """As a chat message; a bad call is part of no template and stands in the content.

        Args:
            first: number of the first call in its rollout, which its id says.
        """
        good = [
            (call_id(number), call)
            for number, call in enumerate(self.calls, first)
            if isinstance(call, ToolCall)
        ]
        bad = [call.written for call in self.calls if isinstance(call, BadCall)]
        message: Message = {"role": "assistant", "content": "\n".join([self.content, *bad]).strip()}
        if good:
            message["tool_calls"] = [
                {
                    "id": name,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for name, call in good
            ]
        return message


def call_id(number: int) -> str:
    """The id of a rollout's call; some templates take nothing but nine letters and digits."""
    return f"call{number:05d}"


class CallParser(Protocol):
    """Finds the tool calls of a turn."""

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        """The turn taken apart; never raises for anything that a student can write.

        Args:
            text: the turn with its special tokens, without the one that ended it.
            tools: what can be called, with the types of the arguments.
        """
        ...


def after_thinking(text: str) -> tuple[str, str]:
    """A turn's thinking, its closing tag included, and what follows it.

    A call that is only thought of is no call. Thinking that never ends is all thinking. It may have
    begun in the prompt, and ends where its closing tag stands for the first time.
    """
    thinking, end, said = text.partition(_END_OF_THINKING)
    if end:
        return thinking + end, said
    return (text, "") if text.lstrip().startswith(_THINKING) else ("", text)


def json_at(text: str, begin: int) -> tuple[Any, int]:
    """The JSON value in ``text`` that begins at ``begin`` or after white space, and where it ends.

    Raises:
        ValueError: there is none, or one that not every reader of JSON takes: nested by hundreds,
            or with half a surrogate pair, which no file and no tokenizer can hold.
    """
    while text[begin : begin + 1].isspace():
        begin += 1
    # Python's error looks for its line from the first character on: not for each of many tags.
    if not _BEGINS.match(text, begin):
        raise ValueError("there is no value")
    try:
        value, end = _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, at character {error.pos - begin}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    written = text[begin:end]
    if written.count("[") + written.count("{") > _MOST_NESTED and _depth(value) > _MOST_NESTED:
        raise ValueError(_TOO_DEEP)
    if _SURROGATE.search(written):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a \\u escape is half of a surrogate pair") from None
    return value, end


def json_of(text: str) -> Any:
    """The JSON value that is all of ``text``.

    Raises:
        ValueError: it is none; see :func:`json_at`.
    """
    value, end = json_at(text, 0)
    if text[end:].strip():
        raise ValueError(f"more follows the value, at character {end}")
    return value


def call_of(written: Any, source: str, arguments_key: str = "arguments") -> ToolCall | BadCall:
    """The call that a parsed JSON value stands for; ``source`` is its text."""
    if not isinstance(written, Mapping):
        return BadCall(source, "a tool call must be a JSON object with a name and arguments")
    name = written.get("name")
    if not isinstance(name, str) or not name:
        return BadCall(source, 'a tool call needs a "name", the name of the tool as text')
    arguments = written.get(arguments_key, {})
    if not isinstance(arguments, Mapping):
        return BadCall(source, f'"{arguments_key}" of a tool call must be a JSON object')
    return ToolCall(name, dict(arguments))


def parameters_of(name: str, tools: Sequence[ToolSchema]) -> Mapping[str, Any]:
    """The JSON schemas of a tool's arguments by their names; none of an unknown tool."""
    for tool in tools:
        function = tool["function"]
        if function["name"] == name:
            return (function.get("parameters") or {}).get("properties") or {}
    return {}


def _depth(value: Any) -> int:
    """How deep lists and objects stand in one another, without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [x for i in level for x in (i.values() if isinstance(i, dict) else i)]
    return depth
