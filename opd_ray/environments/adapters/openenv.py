"""Sessions of OpenEnv (``openenv.core.harness``) as environments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from opd_ray.environments.environment import Message, ToolResult, ToolSchema
from opd_ray.import_path import load_object


class OpenEnvSession:
    """One session of a ``ResourceSessionFactory``.

    Args:
        factory: "package.module:object" of the factory's class, or of a function that makes one.
        arguments: of the class or function.
        task: column of the row that the session is made for; null gives it the whole row.
        example: a task to make the session for that is asked for its tools before a row is there.
    """

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any] | None = None,
        task: str | None = None,
        example: Any = None,
    ) -> None:
        self._factory = load_object(factory, "factory")(**(arguments or {}))
        self._task, self._example = task, example
        self._session: Any = None

    @cached_property
    def tools(self) -> Sequence[ToolSchema]:
        """Those of the session; before there is one, those of another."""
        asked = self._session or self._factory.create(self._example)
        try:
            return [_schema(tool) for tool in asked.list_tools()]
        finally:
            if asked is not self._session:
                asked.close()

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """The session's first messages, or the row's where it has none."""
        task = dict(row) if self._task is None else row[self._task]
        self._session = self._factory.create(task, seed=row.get("rollout_seed"))
        return list(self._session.initial_messages()) or list(row["prompt"])

    def call_tool(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """The session's answer, written as OpenEnv writes it; its error where it has one."""
        result = self._session.call_tool(name, arguments)
        if result.error is not None:
            return ToolResult(f"error: {result.error}", result.done)
        data = "" if result.data is None else result.data
        text = data if isinstance(data, str) else json.dumps(data, sort_keys=True, default=str)
        return ToolResult(text, result.done)

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        """The session's reward, where it gives one, and its metrics that are numbers."""
        result = self._session.verify(list(messages))
        numbers = {k: float(v) for k, v in result.metrics.items() if isinstance(v, int | float)}
        reward = {} if result.env_reward is None else {"reward": float(result.env_reward)}
        return numbers | reward

    def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            self._session.close()


def _schema(tool: Any) -> ToolSchema:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
        },
    }
