"""Arguments by schemas: those that they allow, wrong ones, and schemas that no one should write."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from opd_ray.environments.tool_list import list_problems
from opd_ray.preflight.contract.tool_arguments import (
    random_arguments,
    random_calls,
    wrong_arguments,
)
from opd_ray.preflight.contract.tool_schemas import (
    schema_problems,
    signature_of,
    signature_problems,
)

ALLOWED: dict[str, Any] = {
    "text": ({"type": "string"}, lambda v: isinstance(v, str)),
    "few": ({"type": "integer", "minimum": 3, "maximum": 5}, lambda v: v in (3, 4, 5)),
    "above": ({"type": "integer", "minimum": 100}, lambda v: 100 <= v <= 109),
    "share": ({"type": "number", "maximum": 1}, lambda v: 0 <= v <= 1),
    "flag": ({"type": "boolean"}, lambda v: v in (True, False)),
    "nothing": ({"type": "null"}, lambda v: v is None),
    "colour": ({"enum": ["red", "blue"]}, lambda v: v in ("red", "blue")),
    "fixed": ({"const": 7}, lambda v: v == 7),
    "either": ({"anyOf": [{"const": 1}, {"const": "one"}]}, lambda v: v in (1, "one")),
    "both": ({"type": ["integer", "null"]}, lambda v: v is None or isinstance(v, int)),
    "pair": (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]},
        lambda v: v == [1, 2],
    ),
    "list": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        lambda v: len(v) in (2, 3) and all(isinstance(one, int) for one in v),
    ),
    "inner": (
        {"type": "object", "properties": {"x": {"const": 4}}, "required": ["x"]},
        lambda v: v == {"x": 4},
    ),
}


def parameters(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas, "required": list(schemas)}


def tool(parameters: Any, name: str = "look") -> dict[str, Any]:
    function = {"name": name, "description": "Looks.", "parameters": parameters}
    return {"type": "function", "function": function}


@pytest.mark.parametrize("name", ALLOWED)
def test_values_that_a_schema_allows(name: str) -> None:
    schema, allows = ALLOWED[name]
    rng = Random(0)
    drawn = [random_arguments(parameters(it=schema), rng, ("word",))["it"] for _ in range(50)]
    assert [value for value in drawn if not allows(value)] == []


def test_arguments_that_are_not_required_come_now_and_then() -> None:
    free = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}}
    drawn = [random_arguments({**free, "required": ["a"]}, Random(n), ()) for n in range(30)]
    assert {tuple(one) for one in drawn} == {("a",), ("a", "b")}


def test_calls_use_words_of_the_prompt() -> None:
    row = {"prompt": [{"role": "user", "content": "Go to (Rome)!"}]}
    calls = random_calls([tool(parameters(at={"type": "string"}))] * 9, row, Random(0))
    assert len(calls) == 27
    assert {"Go", "to", "Rome"} <= {arguments["at"] for _, arguments in calls}


def test_wrong_arguments() -> None:
    asked = parameters(at={"type": "string"}, by={"type": ["integer", "null"]})
    none, unknown, *others = wrong_arguments(asked, Random(0))
    assert none == {}
    assert set(unknown) == {"at", "by", "no_such_argument"}
    assert [one["at"] for one in others[:2]] == [5, None]
    assert [one["by"] for one in others[2:]] == [[[]], None]


ODD = [
    {"type": 5},
    {"type": []},
    {"type": "integer", "minimum": 9, "maximum": 1},
    {"type": "number", "minimum": "low", "maximum": float("nan")},
    {"type": "array", "items": 5},
    {"type": "array", "minItems": 9, "maxItems": "many"},
    {"type": "object", "properties": 5, "required": 5},
    {"anyOf": 5},
    {"anyOf": []},
    {"enum": 5},
    {},
]


@pytest.mark.parametrize("schema", ODD)
def test_odd_schemas_are_no_stumbling_block(schema: Any) -> None:
    odd = tool(parameters(it=schema))
    list(list_problems([odd]))
    list(schema_problems(odd))
    list(signature_problems(odd, lambda it: it))
    assert signature_of(odd).startswith("look(it: ")
    for seed in range(5):
        assert "it" in random_arguments(odd["function"]["parameters"], Random(seed), ())
    assert len(list(wrong_arguments(odd["function"]["parameters"], Random(0)))) == 4


@pytest.mark.parametrize(
    "given",
    [
        5,
        {"properties": 5},
        {"properties": {"a": 5}},
        {"properties": {1: {}}},
        {"required": "a"},
        {"required": [5]},
    ],
)
def test_parameters_of_no_form(given: Any) -> None:
    (text,) = list_problems([tool(given)])
    assert text.startswith("tool 'look': its parameters are ")


def test_types_inside_of_types() -> None:
    deep = {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "date"}}}}
    (text,) = schema_problems(tool(parameters(it=deep)))
    assert text == (
        "tool 'look': parameter 'it', its items, its 'x': type 'date' is none that JSON has: "
        "string, integer, number, boolean, array, object, null"
    )
    (text,) = schema_problems(tool(parameters(it={"anyOf": [{"type": "string"}, {}]})))
    assert text.startswith("tool 'look': parameter 'it', in anyOf: its schema says no type")


def test_a_method_that_takes_anything() -> None:
    assert list(signature_problems(tool(parameters(at={"type": "string"})), lambda **a: a)) == []
