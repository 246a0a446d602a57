"""Whether what an environment calls its tools is a list of function schemas."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def list_problems(tools: Any) -> Iterator[str]:
    """What is wrong with the form of ``tools``; no more can be checked then."""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        yield f"tools is a {type(tools).__name__}; expected a list of schemas"
        return
    names = []
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            yield (
                f'tools[{number}] is {shortened(tool)}; expected {{"type": "function", "function": '
                '{"name": ..., "description": ..., "parameters": {...}}}'
            )
            continue
        names.append(name)
        try:
            json.dumps(tool, allow_nan=False)
        except (TypeError, ValueError) as error:
            yield f"tool {name!r}: its schema is no JSON: {error}"
        assert isinstance(function, Mapping)
        if not _is_object_schema(parameters := function.get("parameters", {})):
            yield (
                f"tool {name!r}: its parameters are {shortened(parameters)}; expected "
                '{"type": "object", "properties": {NAME: {...}}, "required": [NAME]}'
            )
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{count} tools are called {name!r}: give each its own name"


def _is_object_schema(parameters: Any) -> bool:
    if not isinstance(parameters, Mapping):
        return False
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        return False
    schemas = all(isinstance(schema, Mapping) for schema in properties.values())
    return schemas and all(isinstance(name, str) for name in [*properties, *required])


def repr_of(value: Any) -> str:
    """Its ``repr``; where that raises, as of a number of 5,000 digits, what it is."""
    try:
        return repr(value)
    except Exception as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


def shortened(value: Any, most: int = 120) -> str:
    """A value as one short line."""
    text = value if isinstance(value, str) else repr_of(value)
    text = text.encode(errors="replace").decode().replace("\n", "\\n")
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
