"""Calls as JSON objects between ``<tool_call>`` tags: Hermes, Qwen2.5, Qwen3."""

from __future__ import annotations

import re
from collections.abc import Sequence

from opd_ray.environments.calls import (
    AssistantTurn,
    BadCall,
    ToolCall,
    after_thinking,
    call_of,
    json_at,
)
from opd_ray.environments.environment import ToolSchema

_OPEN = "<tool_call>"
_CLOSE = re.compile(r"\s*(</tool_call>|\Z)")
# Where a call ends that is no JSON.
_ANY_END = re.compile(r"</tool_call>|(?=<tool_call>)|\Z")


class HermesParser:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of them.

    The last tag may be missing where the JSON is whole.
    """

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        """See :class:`opd_ray.environments.calls.CallParser`."""
        thinking, said = after_thinking(text)
        calls: list[ToolCall | BadCall] = []
        content, at = [thinking], 0
        while (begin := said.find(_OPEN, at)) >= 0:
            content.append(said[at:begin])
            call, at = _call(said, begin)
            calls.append(call)
        content.append(said[at:])
        return AssistantTurn("".join(content).strip(), tuple(calls))


def _call(said: str, begin: int) -> tuple[ToolCall | BadCall, int]:
    """The call that is opened at ``begin``, and where it ends."""
    inside = begin + len(_OPEN)
    try:
        written, end = json_at(said, inside)
    except ValueError as error:
        problem = f"the tool call is not valid JSON: {error}"
    else:
        if close := _CLOSE.match(said, end):
            return call_of(written, said[begin : close.end()]), close.end()
        problem = "the tool call is not closed with </tool_call> right after its JSON"
    found = _ANY_END.search(said, inside)
    end = found.end() if found else len(said)
    if not said.startswith("</tool_call>", end - len("</tool_call>")):
        problem = "the tool call is not closed with </tool_call>"
    return BadCall(said[begin:end], problem), end
