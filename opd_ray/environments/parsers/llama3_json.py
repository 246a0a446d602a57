"""Calls as bare JSON objects with "parameters": Llama 3."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from opd_ray.environments.calls import AssistantTurn, BadCall, ToolCall, call_of, json_at
from opd_ray.environments.environment import ToolSchema

_TAG = "<|python_tag|>"
_BEGIN = re.compile(r'\{\s*"(?:name|type|parameters|arguments)"\s*:')
_BETWEEN = re.compile(r"[\s;,]*")


class Llama3JsonParser:
    """``{"name": ..., "parameters": {...}}``, several with ``;`` between, after an optional tag.

    What stands around them is content, and so is an object that is no call: an answer in JSON.
    """

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        """See :class:`opd_ray.environments.calls.CallParser`."""
        before, tag, said = text.partition(_TAG)
        content, at = [before], 0
        if not tag:
            content, said = [], text
        calls: list[ToolCall | BadCall] = []
        while begin := _BEGIN.search(said, at):
            content.append(said[at : begin.start()])
            call, at = _call(said, begin.start(), tools)
            if call is None:
                content.append(said[begin.start() : at])
            else:
                calls.append(call)
                if between := _BETWEEN.match(said, at):
                    at = between.end()
        if tag and not calls:
            problem = f'write {{"name": ..., "parameters": {{...}}}} after {_TAG}'
            return AssistantTurn(before.strip(), (BadCall(tag + said, problem),))
        content.append(said[at:])
        return AssistantTurn("".join(content).strip(), tuple(calls))


def _call(
    said: str, begin: int, tools: Sequence[ToolSchema]
) -> tuple[ToolCall | BadCall | None, int]:
    """The call that begins at ``begin``, None if it is none, and where it ends."""
    try:
        written, end = json_at(said, begin)
    except ValueError as error:
        following = _BEGIN.search(said, begin + 1)
        end = following.start() if following else len(said)
        return BadCall(said[begin:end], f"the tool call is not valid JSON: {error}"), end
    key = next((key for key in ("arguments", "parameters") if key in written), None)
    if not _is_call(written, key, tools):
        return None, end
    return call_of(written, said[begin:end], key or "parameters"), end


def _is_call(written: dict[str, Any], key: str | None, tools: Sequence[ToolSchema]) -> bool:
    """Whether an object is meant as a call: it has arguments, or the name of a tool."""
    if key is not None:
        return "name" in written
    return any(tool["function"]["name"] == written.get("name") for tool in tools)
