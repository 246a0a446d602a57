"""An environment made of a class whose public methods are the tools, as users of TRL write them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from opd_ray.borders import border
from opd_ray.environments.environment import Message, ToolResult, ToolSchema
from opd_ray.errors import ConfigError

# Public methods that are no tools.
_OWN = ("reset", "respond", "verify", "close", "get_reward")


class ToolClass:
    """One instance of the user's class as an :class:`opd_ray.environments.environment.Environment`.

    Every public method is a tool: its type hints and Google-style docstring are the schema. Of the
    rest, all are optional: ``reset(**row)`` may return text, which is added to the last message of
    the user, ``get_reward()`` a figure, ``verify(messages)`` several, ``respond(text)`` messages.

    Args:
        cls: the class.
        arguments: of its constructor.

    Raises:
        ConfigError: a method without type hints or with undescribed arguments.
    """

    def __init__(self, cls: type, arguments: Mapping[str, Any]) -> None:
        self._made = cls(**arguments)
        self._methods = tool_methods(self._made)
        self.tools: Sequence[ToolSchema] = [
            schema_of(name, method) for name, method in self._methods.items()
        ]
        if hasattr(self._made, "respond"):
            self.respond = self._made.respond

    def reset(self, row: Mapping[str, Any]) -> list[Message] | Awaitable[list[Message]]:
        """The row's own messages, with what the class adds."""
        messages = [dict(message) for message in row["prompt"]]
        added = self._made.reset(**row) if hasattr(self._made, "reset") else None
        if not inspect.isawaitable(added):
            return _with_text(messages, added)

        async def later() -> list[Message]:
            return _with_text(messages, await added)

        return later()

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call the method."""
        return self._methods[name](**arguments)

    def verify(self, messages: Sequence[Message]) -> Any:
        """What the class says of the conversation; its reward as ``reward``."""
        if hasattr(self._made, "verify"):
            return self._made.verify(messages)
        if not hasattr(self._made, "get_reward"):
            return {}
        reward = self._made.get_reward()
        if not inspect.isawaitable(reward):
            return {"reward": float(reward)}

        async def later() -> dict[str, float]:
            return {"reward": float(await reward)}

        return later()

    def close(self) -> Any:
        """Close the instance if it can be closed."""
        return self._made.close() if hasattr(self._made, "close") else None


def tool_methods(made: Any) -> dict[str, Callable[..., Any]]:
    """The public methods that are tools, by name, in the order of their definition."""
    names = [name for cls in reversed(type(made).__mro__) for name in vars(cls)]
    methods = {
        name: getattr(made, name)
        for name in dict.fromkeys(names)
        if not name.startswith("_") and name not in _OWN
    }
    return {name: method for name, method in methods.items() if callable(method)}


def schema_of(name: str, method: Callable[..., Any]) -> ToolSchema:
    """The OpenAI function schema of a method, from its type hints and docstring.

    Raises:
        ConfigError: a hint or a description is missing.
    """
    from transformers.utils import get_json_schema

    place = f"tool {name!r} ({getattr(method, '__qualname__', name)})"
    remedy = "give every argument a type hint, and a line under Args: in the docstring"
    with border(place, remedy, ConfigError):
        return get_json_schema(method)


def _with_text(messages: list[Message], text: Any) -> list[Message]:
    """The messages with ``text`` at the end of the last one of the user."""
    if text is None:
        return messages
    if not isinstance(text, str):
        raise TypeError(f"reset() returned {type(text).__name__}: return text or None")
    last = max(n for n, message in enumerate(messages) if message["role"] == "user")
    messages[last]["content"] += text
    return messages


def as_tool_result(answered: Any) -> ToolResult:
    """What a tool answered, as a result: text as it is, other values as JSON.

    Raises:
        TypeError: neither text nor anything that JSON can hold.
    """
    import json

    if isinstance(answered, ToolResult):
        return answered
    if isinstance(answered, str):
        return ToolResult(answered)
    return ToolResult(json.dumps(answered, ensure_ascii=False))
