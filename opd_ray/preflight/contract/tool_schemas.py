"""Schemas of tools: are they such as templates and parsers read, and do they fit the methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opd_ray.environments.tool_list import shortened
from opd_ray.preflight.contract.tool_arguments import kinds_of

_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
# Any of them says what a value may be.
_SAYING = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")
_FREE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def schema_problems(tool: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one tool's schema, which has the right form."""
    function = tool["function"]
    said = f"tool {function['name']!r}"
    if tool.get("type") != "function":
        yield f'{said}: its schema\'s "type" is {tool.get("type")!r}; expected "function"'
    described = function.get("description")
    if not isinstance(described, str) or not described.strip():
        yield f"{said} has no description: a student could not know what it is for"
    parameters = function.get("parameters", {})
    if parameters.get("type", "object") != "object":
        yield f'{said}: the type of its parameters is {parameters["type"]!r}; expected "object"'
    properties = parameters.get("properties", {})
    for name in parameters.get("required", []):
        if name not in properties:
            yield f"{said}: requires {name!r}, which is none of its parameters"
    for name, schema in properties.items():
        yield from _type_problems(f"{said}: parameter {name!r}", schema)


def signature_problems(
    tool: Mapping[str, Any], method: Callable[..., Any]
) -> Iterator[tuple[bool, str]]:
    """Where a tool's schema and the method behind it part: whether calls fail by it, and what."""
    function = tool["function"]
    said = f"tool {function['name']!r}"
    parameters = function.get("parameters", {})
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    taken = inspect.signature(method).parameters
    named = {name: p for name, p in taken.items() if p.kind not in _FREE}
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        for name in properties:
            if name not in named:
                yield True, f"{said}: its schema has {name!r}, which the method does not take"
    for name, parameter in named.items():
        needed = parameter.default is parameter.empty
        if name not in properties:
            told = "needs" if needed else "takes"
            yield needed, f"{said}: the method {told} {name!r}, which its schema does not show"
        elif needed and name not in required:
            yield True, f"{said}: the method needs {name!r}, which its schema does not require"
        elif not needed and name in required:
            yield False, f"{said}: its schema requires {name!r}, which the method can do without"


def signature_of(tool: Mapping[str, Any]) -> str:
    """``name(required: type, other: type = ...)`` of a schema, for a person."""
    function = tool["function"]
    parameters = function.get("parameters", {})
    required = parameters.get("required", [])
    parts = [
        f"{name}: {_type_text(schema)}{'' if name in required else ' = ...'}"
        for name, schema in parameters.get("properties", {}).items()
    ]
    return f"{function['name']}({', '.join(parts)})"


def _type_problems(place: str, schema: Any) -> Iterator[str]:
    if not isinstance(schema, Mapping):
        yield f"{place}: its schema is {shortened(schema)}; expected an object"
        return
    if not any(key in schema for key in _SAYING):
        yield f"{place}: its schema says no type, so that a student cannot know what to write"
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list | tuple) else [kinds]:
        if kind not in _TYPES:
            yield f"{place}: type {kind!r} is none that JSON has: {', '.join(_TYPES)}"
    if "items" in schema:
        yield from _type_problems(f"{place}, its items", schema["items"])
    for key in ("anyOf", "oneOf"):
        inside = schema.get(key, [])
        for one in inside if isinstance(inside, list | tuple) else [inside]:
            yield from _type_problems(f"{place}, in {key}", one)
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        yield f"{place}: its properties are {shortened(properties)}; expected an object"
        return
    for name, inner in properties.items():
        yield from _type_problems(f"{place}, its {name!r}", inner)


def _type_text(schema: Mapping[str, Any]) -> str:
    if isinstance(choices := schema.get("enum"), list | tuple):
        return " | ".join(map(repr, choices))
    return " | ".join(kinds_of(schema)) or "any"
