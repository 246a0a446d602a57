"""Turns that are nothing but calls, JSON objects with "parameters": Llama 3."""

from __future__ import annotations

import json
from collections.abc import Sequence

from opd_ray.environments.calls import AssistantTurn, BadCall, ToolCall, call_of
from opd_ray.environments.environment import ToolSchema

_TAG = "<|python_tag|>"


class Llama3JsonParser:
    """``{"name": ..., "parameters": {...}}``, several with ``;`` between, after an optional tag."""

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        """See :class:`opd_ray.environments.calls.CallParser`."""
        before, tag, after = text.partition(_TAG)
        content, said = (before, after.strip()) if tag else ("", text.strip())
        if not said.startswith("{") or not (tag or '"name"' in said):
            return AssistantTurn(text.strip(), ())
        calls: list[ToolCall | BadCall] = []
        decoder = json.JSONDecoder()
        while said:
            try:
                written, end = decoder.raw_decode(said)
            except (ValueError, RecursionError) as error:
                calls.append(BadCall(said, f"the tool call is not valid JSON: {error}"))
                break
            key = (
                "arguments"
                if isinstance(written, dict) and "arguments" in written
                else "parameters"
            )
            calls.append(call_of(written, said[:end], key))
            said = said[end:].lstrip(" \n\t;")
        return AssistantTurn(content.strip(), tuple(calls))
