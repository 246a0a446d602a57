"""An environment made of a class whose public methods are the tools, as users of TRL write them."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

from opd_ray.borders import border
from opd_ray.environments.environment import Message, ToolResult, ToolSchema
from opd_ray.errors import ConfigError

# Public methods that are no tools, with what a run calls them with.
_OWN: dict[str, tuple[str, ...] | None] = {
    "reset": None,
    "get_reward": (),
    "respond": ("text",),
    "verify": ("messages",),
    "close": (),
}


class ToolClass:
    """One object of the user's as an :class:`opd_ray.environments.environment.Environment`.

    Every public method is a tool: its type hints and Google-style docstring are the schema. Of the
    rest, all are optional: ``reset`` takes columns of the row by name and may return text, which is
    added to the last message of the user, ``get_reward()`` gives a figure, ``verify(messages)``
    several, ``respond(text)`` messages.

    Args:
        made: an instance of the user's class.
        tools: its schemas, where they are known; the class is not checked then.

    Raises:
        ConfigError: as :func:`check_tool_class`.
    """

    def __init__(self, made: Any, tools: Sequence[ToolSchema] | None = None) -> None:
        if tools is None:
            check_tool_class(type(made))
            tools = tool_schemas(type(made))
        self._made = made
        self._methods = tool_methods(type(made), made)
        self.tools = tools
        if hasattr(made, "respond"):
            self.respond = made.respond

    @property
    def columns(self) -> Sequence[str]:
        """Those of the row that ``reset`` cannot do without."""
        return _needed(self._made.reset) if hasattr(self._made, "reset") else ()

    def reset(self, row: Mapping[str, Any]) -> list[Message] | Awaitable[list[Message]]:
        """The row's own messages, with what the class adds."""
        messages = [dict(message) for message in row["prompt"]]
        if not hasattr(self._made, "reset"):
            return messages
        added = self._made.reset(**_taken(self._made.reset, row))
        if not inspect.isawaitable(added):
            return _with_text(messages, added)

        async def later() -> list[Message]:
            return _with_text(messages, await added)

        return later()

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call the method."""
        return self._methods[name](**arguments)

    def verify(self, messages: Sequence[Message]) -> Any:
        """What the class says of the conversation; else its reward, as ``reward``."""
        if hasattr(self._made, "verify"):
            return self._made.verify(messages)
        if not hasattr(self._made, "get_reward"):
            return {}
        reward = self._made.get_reward()
        if not inspect.isawaitable(reward):
            return _reward(reward)

        async def later() -> dict[str, float]:
            return _reward(await reward)

        return later()

    def close(self) -> Any:
        """Close the instance if it can be closed."""
        return self._made.close() if hasattr(self._made, "close") else None


def check_tool_class(cls: type) -> None:
    """Refuse a class that no environment can be made of; no instance is needed.

    Raises:
        ConfigError: a tool without type hints, with undescribed arguments or without a docstring;
            a method of another shape than a run calls it in; or nothing that a student could do.
    """
    for name, given in _OWN.items():
        method = getattr(cls, name, None)
        if given is None or not inspect.isfunction(method):
            continue
        signature = inspect.signature(_bound(cls, name, object()))
        try:
            signature.bind(*given)
        except TypeError:
            raise ConfigError(
                f"{cls.__name__}.{name}{signature} is no tool: a run calls it as "
                f"{name}({', '.join(given)}); let it take that, or give the tool another name"
            ) from None
    if not tool_schemas(cls) and not hasattr(cls, "respond"):
        raise ConfigError(
            f"{cls.__name__} has no public method that could be a tool, and no respond(text): "
            "there is nothing that a student could do with it"
        )


def tool_methods(cls: type, made: object) -> dict[str, Callable[..., Any]]:
    """The public methods that are tools, by name, in the order of their definition.

    Functions and static methods, inherited ones too; no properties, class methods or other objects
    that can be called.

    Args:
        cls: the class.
        made: what they are bound to.
    """
    names = [name for base in reversed(cls.__mro__) for name in vars(base)]
    methods = [
        _bound(cls, name, made)
        for name in dict.fromkeys(names)
        if not name.startswith("_") and name not in _OWN and inspect.isfunction(getattr(cls, name))
    ]
    return {method.__name__: method for method in methods}


def tool_schemas(cls: type) -> tuple[ToolSchema, ...]:
    """The schemas of a class's tools.

    Raises:
        ConfigError: as :func:`schema_of`, a line for every tool that has none.
    """
    return _schemas(cls)


@cache  # one instance a rollout, and the same schemas for all
def _schemas(cls: Hashable) -> tuple[ToolSchema, ...]:
    assert isinstance(cls, type)
    schemas: list[ToolSchema] = []
    problems: list[str] = []
    for method in tool_methods(cls, object()).values():
        try:
            schemas.append(schema_of(method))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(schemas)


def schema_of(method: Callable[..., Any]) -> ToolSchema:
    """The OpenAI function schema of a method, from its type hints and docstring.

    Raises:
        ConfigError: a hint or a description is missing.
    """
    from transformers.utils import get_json_schema

    place = f"tool {method.__name__!r} ({method.__qualname__})"
    remedy = "give every argument a type hint, and a line under Args: in the docstring"
    with border(place, remedy, ConfigError):
        schema: ToolSchema = get_json_schema(_without_result(method))
    return schema


def as_tool_result(answered: Any) -> ToolResult:
    """What a tool answered, as a result: text as it is, parts of a text joined, the rest as JSON.

    Raises:
        TypeError: neither text nor anything that JSON can hold, or an image.
    """
    if isinstance(answered, ToolResult):
        return ToolResult(as_tool_result(answered.text).text, bool(answered.done))
    if isinstance(answered, str):
        return ToolResult(_text_alone(answered))
    parts = _text_of_parts(answered)
    return ToolResult(json.dumps(answered, ensure_ascii=False) if parts is None else parts)


def _text_alone(text: Any) -> str:
    """Text without what a class derived from ``str`` may make of it.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(text, str):
        raise TypeError(f"the text of a ToolResult is a {type(text).__name__}")
    return str.__str__(text)


def _bound(cls: type, name: str, made: object) -> Callable[..., Any]:
    method: Callable[..., Any] = inspect.getattr_static(cls, name).__get__(made, cls)
    return method


def _without_result(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method; where it returns a ``ToolResult``, which no schema can say, without that hint."""
    hints = typing.get_type_hints(method)
    result = hints.get("return")
    if result is not ToolResult and ToolResult not in typing.get_args(result):
        return method

    @functools.wraps(method)
    def same(*args: Any, **named: Any) -> Any:
        return method(*args, **named)

    same.__annotations__ = {name: hint for name, hint in hints.items() if name != "return"}
    return same


def _taken(reset: Callable[..., Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that ``reset`` takes: all, or those that it names.

    Raises:
        ConfigError: it needs one that the row does not have.
    """
    parameters = inspect.signature(reset).parameters.values()
    if missing := [name for name in _needed(reset) if name not in row]:
        raise ConfigError(
            f"{reset.__qualname__} needs {', '.join(missing)}, which the prompt's row does not "
            f"have; it has {', '.join(row)}: name the column so in the data, or give the "
            "parameter a default"
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(row)
    return {p.name: row[p.name] for p in parameters if p.name in row}


def _needed(reset: Callable[..., Any]) -> list[str]:
    """The parameters of ``reset`` that have no default."""
    return [
        p.name
        for p in inspect.signature(reset).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _with_text(messages: list[Message], added: Any) -> list[Message]:
    """The messages with what ``reset`` returned at the end of the last one of the user."""
    if added is None:
        return messages
    text = added if isinstance(added, str) else _text_of_parts(added)
    if text is None:
        raise ConfigError(f"reset() returned a {type(added).__name__}: return text or None")
    asked = [message for message in messages if message["role"] == "user"]
    if not asked:
        raise ConfigError(
            "reset() returned text, and no message of the prompt is the user's: there is nothing "
            "to add it to"
        )
    content = asked[-1]["content"]
    asked[-1]["content"] = (_text_of_parts(content) or content) + text
    return messages


def _text_of_parts(value: Any) -> str | None:
    """The text of a list of content parts, as messages may have them; None of anything else.

    Raises:
        TypeError: an image or another part that is no text.
    """
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in value):
        return None
    kinds = [part["type"] for part in value]
    if other := [kind for kind in kinds if kind in ("image", "image_url", "audio", "video")]:
        raise TypeError(f"a part of type {other[0]!r}: students read text alone")
    if {*kinds} == {"text"} and all(isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    return None


def _reward(reward: Any) -> dict[str, float]:
    """What ``get_reward`` returned as figures; None says nothing."""
    if reward is None:
        return {}
    try:
        return {"reward": float(reward)}
    except (TypeError, ValueError):
        raise ConfigError(
            f"get_reward() returned {reward!r}: return a number, or None where there is none"
        ) from None
