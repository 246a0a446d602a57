"""Arguments for a tool by its schema: such as a student may write, and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from random import Random
from typing import Any

from opd_ray.environments.environment import ToolSchema

_CALLS = 3  # of each tool
_WORDS = ("", "a", "Zürich", "two words", '"quoted"')
_MOST_ENTRIES = 3
# Values of another type than the schema's, by type.
_WRONG = {"string": 5, "integer": "five", "number": "five", "boolean": "maybe", "array": 5}


def random_calls(
    tools: Sequence[ToolSchema], row: Mapping[str, Any], rng: Random
) -> list[tuple[str, dict[str, Any]]]:
    """A few calls of every tool, in any order, some with words of the row's prompt."""
    content = " ".join(str(message.get("content", "")) for message in row["prompt"])
    words = [word.strip(".,:;?!()\"'") for word in content.split()]
    calls = [
        (
            tool["function"]["name"],
            random_arguments(tool["function"].get("parameters", {}), rng, words),
        )
        for tool in tools
        for _ in range(_CALLS)
    ]
    rng.shuffle(calls)
    return calls


def random_arguments(
    parameters: Mapping[str, Any], rng: Random, words: Sequence[str]
) -> dict[str, Any]:
    """Arguments that the schema allows: the required ones, and some of the others.

    Args:
        parameters: the schema of all arguments, of type object.
        rng: draws them.
        words: texts to take beside a few of our own, for example those of the prompt.
    """
    properties, required = parameters.get("properties"), parameters.get("required")
    needed = required if isinstance(required, list | tuple) else ()
    return {
        name: _value(schema, rng, words)
        for name, schema in (properties.items() if isinstance(properties, Mapping) else ())
        if name in needed or rng.random() < 0.5
    }


def wrong_arguments(parameters: Mapping[str, Any], rng: Random) -> Iterator[dict[str, Any]]:
    """Arguments that the schema does not allow: none, an unknown one, others of another type."""
    if parameters.get("required"):
        yield {}
    right = random_arguments(parameters, rng, _WORDS)
    yield {**right, "no_such_argument": 1}
    for name, schema in parameters.get("properties", {}).items():
        kinds = kinds_of(schema)
        yield {**right, name: _WRONG.get(kinds[0], []) if len(kinds) == 1 else [[]]}
        yield {**right, name: None}


def kinds_of(schema: Any) -> list[str]:
    """The JSON types that a schema names, as far as they are words."""
    kinds = schema.get("type", []) if isinstance(schema, Mapping) else []
    if isinstance(kinds, str):
        return [kinds]
    return [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []


def _value(schema: Any, rng: Random, words: Sequence[str]) -> Any:
    if not isinstance(schema, Mapping):
        schema = {}
    if "const" in schema:
        return schema["const"]
    for key in ("enum", "anyOf", "oneOf"):
        if isinstance(schema.get(key), list | tuple) and schema[key]:
            one = rng.choice(schema[key])
            return one if key == "enum" else _value(one, rng, words)
    match rng.choice(kinds_of(schema) or ["string"]):
        case "integer":
            low = _number(schema, "minimum", 0)
            return rng.randint(int(low), int(max(low, _number(schema, "maximum", low + 9))))
        case "number":
            low = _number(schema, "minimum", 0)
            return round(rng.uniform(low, max(low, _number(schema, "maximum", low + 9))), 2)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "array":
            if isinstance(fixed := schema.get("prefixItems"), list):
                return [_value(one, rng, words) for one in fixed]
            fewest = int(_number(schema, "minItems", 0))
            most = int(_number(schema, "maxItems", fewest + _MOST_ENTRIES))
            count = rng.randint(fewest, max(fewest, min(most, fewest + _MOST_ENTRIES)))
            return [_value(schema.get("items"), rng, words) for _ in range(count)]
        case "object":
            return random_arguments(schema, rng, words)
    return rng.choice([*_WORDS, *words])


def _number(schema: Mapping[str, Any], key: str, default: float) -> float:
    value = schema.get(key, default)
    return value if isinstance(value, int | float) and isfinite(value) else default
