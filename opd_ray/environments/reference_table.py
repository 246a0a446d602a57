"""A small world in which tools are needed: look-ups in a table whose rows refer to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opd_ray.environments.environment import Message, ToolResult, ToolSchema
from opd_ray.tasks.reference_table import TOOL, ReferenceProblem, look_up


class ReferenceTable:
    """The environment of one problem: its tool shows a row of its table."""

    tools: Sequence[ToolSchema] = (
        {
            "type": "function",
            "function": {
                "name": TOOL,
                "description": "Shows a row of the table.",
                "parameters": {
                    "type": "object",
                    "properties": {"row": {"type": "string", "description": "Name of the row."}},
                    "required": ["row"],
                },
            },
        },
    )

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """The question; the other columns of its row are a :class:`ReferenceProblem`."""
        self._problem = ReferenceProblem(
            int(row["table"]), row["start"], row["along"], int(row["hops"]), row["column"]
        )
        self._looked_up: set[str] = set()
        return list(row["prompt"])

    def call_tool(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """The row with all of its cells."""
        if [*arguments] != ["row"]:
            raise ValueError(f"give {name} one argument, row")
        self._looked_up.add(str(arguments["row"]))
        return ToolResult(look_up(self._problem.table, arguments["row"]))

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        """Of the conversation: ``success``, ``found``.

        ``success``: 1 where it ends with a turn of the student whose last number is the total.
        ``found``: the share of the chain's rows that were looked up.
        """
        closing = messages[-1]
        ended = closing["role"] == "assistant" and "tool_calls" not in closing
        chain = self._problem.chain
        return {
            "success": float(ended and self._problem.is_answered(closing["content"])),
            "found": sum(row.name in self._looked_up for row in chain) / len(chain),
        }

    def close(self) -> None:
        """Nothing is held."""
