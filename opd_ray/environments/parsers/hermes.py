"""Calls as JSON objects between ``<tool_call>`` tags: Hermes, Qwen2.5, Qwen3."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from opd_ray.environments.calls import AssistantTurn, BadCall, ToolCall, after_thinking, call_of
from opd_ray.environments.environment import ToolSchema

_BLOCK = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)


class HermesParser:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of them."""

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        """See :class:`opd_ray.environments.calls.CallParser`."""
        thinking, said = after_thinking(text)
        calls = [self._call(*found.groups()) for found in _BLOCK.finditer(said)]
        return AssistantTurn((thinking + _BLOCK.sub("", said)).strip(), tuple(calls))

    def _call(self, inside: str, end: str) -> ToolCall | BadCall:
        written = f"<tool_call>{inside}{end}"
        if not end:
            return BadCall(written, "the tool call is not closed with </tool_call>")
        try:
            return call_of(json.loads(inside), written)
        except (ValueError, RecursionError) as error:
            return BadCall(written, f"the tool call is not valid JSON: {error}")
