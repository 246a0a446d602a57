"""A world and a parser in which a random model acts, for tests on the real engine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opd_ray.environments.calls import AssistantTurn, ToolCall
from opd_ray.environments.environment import Message, ToolResult, ToolSchema

CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content }}<eos>{{ '\\n' }}"
    "{% else %}{{ m.role[0] }}:{{ m.content }}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
LOOK: ToolSchema = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}


class EveryTurnCalls:
    """Reads any turn as one call of ``look``: a random model writes no JSON."""

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        return AssistantTurn("", (ToolCall("look", {"at": text}),))


class Echo:
    """Answers with letters that follow from the whole history, for some looks."""

    tools: Sequence[ToolSchema] = (LOOK,)

    def __init__(self, looks: int = 3, seconds: float = 0.0, width: int = 8) -> None:
        self._looks, self._seconds, self._width = looks, seconds, width
        self._seen: list[str] = []

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        self._seen = [row["prompt"][-1]["content"]]
        return list(row["prompt"])

    def call_tool(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        time.sleep(self._seconds)
        self._seen.append(arguments["at"])
        said = hashlib.sha256("|".join(self._seen).encode()).hexdigest()[: self._width]
        return ToolResult(said, done=len(self._seen) > self._looks)

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        return {"looks": len(self._seen) - 1}

    def close(self) -> None:
        self._seen = []
