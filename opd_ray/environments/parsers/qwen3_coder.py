"""Calls as tagged functions and parameters: Qwen3-Coder, Qwen3.5."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from opd_ray.environments.calls import (
    AssistantTurn,
    BadCall,
    ToolCall,
    after_thinking,
    parameters_of,
)
from opd_ray.environments.environment import ToolSchema

_BLOCK = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_TEXT = {"type": "string"}


class Qwen3CoderParser:
    """``<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>``.

    A value is text where the tool's schema says so, JSON elsewhere.
    """

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        """See :class:`opd_ray.environments.calls.CallParser`."""
        thinking, said = after_thinking(text)
        calls = [self._call(found[1], found[2], tools) for found in _BLOCK.finditer(said)]
        return AssistantTurn((thinking + _BLOCK.sub("", said)).strip(), tuple(calls))

    def _call(self, inside: str, end: str, tools: Sequence[ToolSchema]) -> ToolCall | BadCall:
        written = f"<tool_call>{inside}{end}"
        function = _FUNCTION.fullmatch(inside)
        if function is None or not end:
            return BadCall(written, "write <function=NAME>...</function> inside <tool_call> tags")
        name, body = function[1].strip(), function[2]
        schemas = parameters_of(name, tools) or {}
        arguments = {}
        for key, value in _PARAMETER.findall(body):
            # The template puts a line break on either side of a value; others belong to it.
            value = value.removeprefix("\n").removesuffix("\n")
            try:
                arguments[key.strip()] = _value(value, schemas.get(key.strip(), _TEXT))
            except (ValueError, RecursionError) as error:
                return BadCall(written, f"parameter {key.strip()!r} is not valid JSON: {error}")
        return ToolCall(name, arguments)


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    kinds = schema.get("type", "string")
    if "string" in ([kinds] if isinstance(kinds, str) else kinds):
        return text
    if kinds == "boolean" and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    return json.loads(text)
