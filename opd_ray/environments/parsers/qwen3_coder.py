"""Calls as tagged functions and parameters: Qwen3-Coder, Qwen3.5."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from opd_ray.environments.calls import (
    AssistantTurn,
    BadCall,
    ToolCall,
    after_thinking,
    json_of,
    parameters_of,
)
from opd_ray.environments.environment import ToolSchema

_OPEN = re.compile(r"<tool_call>|<function=")
_CALL = re.compile(
    r"(?:<tool_call>\s*)?<function=([^>\n]+)>((?:(?!<tool_call>|<function=).)*?)</function>"
    r"\s*(?:</tool_call>)?",
    re.DOTALL,
)
# Where a call ends that is none.
_ANY_END = re.compile(r"</tool_call>|(?=<tool_call>)|(?<!<tool_call>)(?=<function=)|\Z")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_KINDS = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


class Qwen3CoderParser:
    """``<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>``.

    A value is text where the tool's schema says so, JSON elsewhere. The outer tags may be missing.
    """

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        """See :class:`opd_ray.environments.calls.CallParser`."""
        thinking, said = after_thinking(text)
        calls: list[ToolCall | BadCall] = []
        content, at = [thinking], 0
        while opened := _OPEN.search(said, at):
            content.append(said[at : opened.start()])
            if whole := _CALL.match(said, opened.start()):
                calls.append(_call(whole, tools))
                at = whole.end()
            else:
                at = _end_of_bad(said, opened.end())
                written = said[opened.start() : at]
                problem = "write <function=NAME>...</function> inside <tool_call> tags"
                calls.append(BadCall(written, problem))
        content.append(said[at:])
        return AssistantTurn("".join(content).strip(), tuple(calls))


def _end_of_bad(said: str, begin: int) -> int:
    found = _ANY_END.search(said, begin)
    return found.end() if found else len(said)


def _call(whole: re.Match[str], tools: Sequence[ToolSchema]) -> ToolCall | BadCall:
    name = whole[1].strip()
    schemas = parameters_of(name, tools)
    arguments = {}
    for found in _PARAMETER.finditer(whole[2]):
        key = found[1].strip()
        # The template puts a line break on either side of a value; others belong to it.
        value = found[2].removeprefix("\n").removesuffix("\n")
        try:
            arguments[key] = _value(value, kinds_of(schemas.get(key)))
        except ValueError as error:
            return BadCall(whole[0], f"parameter {key!r} is not valid JSON: {error}")
    return ToolCall(name, arguments)


def kinds_of(schema: Any) -> set[str]:
    """The JSON types that a schema names; of one that names none, "string"."""
    kinds = _named_kinds(schema)
    if isinstance(schema, Mapping) and schema.get("nullable") is True:
        kinds |= {"null"} if kinds else {"null", "string"}
    return kinds or {"string"}


def _named_kinds(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type", ())
    kinds = {named} if isinstance(named, str) else set(named)
    for value in schema.get("enum") or ():
        kinds.add("string" if isinstance(value, str) else _KINDS.get(type(value), "null"))
    for choices in ("anyOf", "oneOf", "allOf"):
        for choice in schema.get(choices) or ():
            kinds |= _named_kinds(choice)
    return kinds


def _value(text: str, kinds: set[str]) -> Any:
    """A value as one of these types; as text where it is none of them and may be text.

    Raises:
        ValueError: it may not, and is no JSON.
    """
    word = text.strip().lower()
    # Templates write these as Python does.
    if "null" in kinds and word in ("null", "none"):
        return None
    if "boolean" in kinds and word in ("true", "false"):
        return word == "true"
    others = kinds - {"string"}
    try:
        value = json_of(text) if others else text
    except ValueError:
        if "string" in kinds:
            return text
        raise
    kind = _KINDS.get(type(value), "null" if value is None else "string")
    fits = kind in others or (kind == "integer" and "number" in others)
    return text if "string" in kinds and not fits else value
