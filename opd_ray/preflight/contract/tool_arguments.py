"""Arguments for a tool by its schema: such as a student may write, and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    required = parameters.get("required", [])
    return {
        name: _value(schema, rng, words)
        for name, schema in parameters.get("properties", {}).items()
        if name in required or rng.random() < 0.5
    }


def wrong_arguments(parameters: Mapping[str, Any], rng: Random) -> Iterator[dict[str, Any]]:
    """Arguments that the schema does not allow: none, an unknown one, others of another type."""
    if parameters.get("required"):
        yield {}
    right = random_arguments(parameters, rng, _WORDS)
    yield {**right, "no_such_argument": 1}
    for name, schema in parameters.get("properties", {}).items():
        kind = schema.get("type")
        yield {**right, name: _WRONG.get(kind, []) if isinstance(kind, str) else [[]]}
        yield {**right, name: None}


def _value(schema: Mapping[str, Any], rng: Random, words: Sequence[str]) -> Any:
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return rng.choice(list(schema["enum"]))
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return _value(rng.choice(list(schema[key])), rng, words)
    kind = schema.get("type", "string")
    if not isinstance(kind, str):
        kind = rng.choice(list(kind))
    match kind:
        case "integer":
            low = int(schema.get("minimum", 0))
            return rng.randint(low, int(schema.get("maximum", low + 9)))
        case "number":
            least = float(schema.get("minimum", 0))
            return round(rng.uniform(least, float(schema.get("maximum", least + 9))), 2)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "array":
            if fixed := schema.get("prefixItems"):
                return [_value(one, rng, words) for one in fixed]
            fewest = int(schema.get("minItems", 0))
            count = rng.randint(fewest, int(schema.get("maxItems", fewest + _MOST_ENTRIES)))
            return [_value(schema.get("items", {}), rng, words) for _ in range(count)]
        case "object":
            return random_arguments(schema, rng, words)
    return rng.choice([*_WORDS, *words])
