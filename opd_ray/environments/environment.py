"""What an environment is: the messages, tools and figures of one rollout that takes turns."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

# A chat message as templates read it: "role", "content" and, of an assistant, "tool_calls".
Message = dict[str, Any]
# An OpenAI function schema: "type": "function" and "function": name, description, parameters.
ToolSchema = dict[str, Any]


@dataclass(frozen=True)
class ToolResult:
    """What a tool answers."""

    text: str  # what the student reads
    done: bool = False  # whether the rollout ends with it


@runtime_checkable
class Environment(Protocol):
    """The world of one rollout. Plain Python: one instance a rollout, one call at a time.

    An environment may also have ``respond``, see :class:`Responds`, and a method may be a coroutine
    function. An exception in a tool is what the student reads as its result; one in any other
    method ends the run.
    """

    tools: Sequence[ToolSchema]  # the same for all instances; may be empty

    def reset(self, row: Mapping[str, Any]) -> list[Message] | Awaitable[list[Message]]:
        """Begin: the messages that open the conversation.

        Args:
            row: the prompt's row with all of its columns, ``prompt`` among them as chat messages.
        """
        ...

    def call_tool(
        self, name: str, arguments: dict[str, Any]
    ) -> ToolResult | str | Awaitable[ToolResult | str]:
        """The result of one call; ``name`` is that of one of :attr:`tools`."""
        ...

    def verify(
        self, messages: Sequence[Message]
    ) -> Mapping[str, float] | Awaitable[Mapping[str, float]]:
        """Figures of the whole conversation, for evaluation. Distillation needs no reward."""
        ...

    def close(self) -> Awaitable[None] | None:
        """Let go of files, processes and connections; nothing is called after it."""
        ...


@runtime_checkable
class Responds(Protocol):
    """An environment that answers turns in which no tool was called."""

    def respond(self, text: str) -> list[Message] | Awaitable[list[Message] | None] | None:
        """The messages that follow a turn of ``text`` without a call; None ends the rollout."""
        ...
