"""An environment that does what none should, in every method that can be asked for it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opd_ray.environments.environment import Message, ToolResult, ToolSchema

DO: ToolSchema = {
    "type": "function",
    "function": {
        "name": "do",
        "description": "Does something.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}


class Unruly:
    """Tells how often it was called, or misbehaves.

    Args:
        at_start: what the constructor does.
    """

    tools: Sequence[ToolSchema] = (DO,)

    def __init__(self, at_start: str = "") -> None:
        self.calls = 0
        misbehave(at_start)

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        misbehave(row.get("in_reset", ""))
        return [*row["prompt"], {"role": "user", "content": "Go on."}]

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        self.calls += 1
        what = arguments["what"]
        if what == "where":
            return {"process": os.getpid(), "torch": "torch" in sys.modules}
        if what == "done":
            return ToolResult("all of it", done=True)
        misbehave(what)
        return f"call {self.calls}"

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        misbehave(messages[-1]["content"])
        return {"calls": self.calls}

    def close(self) -> None:
        self.calls = -1


class Talking(Unruly):
    """One that answers turns without a call."""

    def respond(self, text: str) -> list[Message] | None:
        misbehave(text)
        return None if text == "bye" else [{"role": "user", "content": f"You said {text}"}]


def misbehave(how: str) -> None:
    """Raise, leave, hang or crash, or do nothing."""
    match how:
        case "raise":
            raise KeyError("no")
        case "leave":
            sys.exit(3)
        case "hang":
            time.sleep(3600)
        case "exit":
            os._exit(1)
        case "crash":
            ctypes.string_at(0)


class Here:
    """Its public method is a tool."""

    def do(self, what: str) -> dict[str, Any]:
        """Tells where it runs.

        Args:
            what: nothing.
        """
        return {"process": os.getpid(), "torch": "torch" in sys.modules}
