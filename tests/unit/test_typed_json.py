"""JSON of a file is the record it was written from, or the field is named that is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from opd_ray.typed_json import check, made_of


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    share: float
    told: bool = False
    lists: list[list[int]] | None = None
    more: dict[str, float] = field(default_factory=dict)
    free: Any = None


WHOLE: dict[str, Any] = {"name": "a", "count": 2, "share": 1}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"told": True, "lists": [[1], []], "more": {"x": 1, "y": 0.5}, "free": {"any": [None]}},
        {"lists": None},
        {"share": float("nan")},
    ],
)
def test_a_record_is_made(more: dict[str, Any]) -> None:
    values = {**WHOLE, **more}
    made = made_of(Row, values)
    assert {name: getattr(made, name) for name in values} == values


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "expected an object, found None"),
        ([1], r"expected an object, found \[1\]"),
        ({"name": "a", "count": 2}, "share is missing"),
        ({**WHOLE, "other": 1}, "'other' is not known"),
        ({**WHOLE, "name": None}, "name is None, expected <class 'str'>"),
        ({**WHOLE, "count": True}, "count is True, expected <class 'int'>"),
        ({**WHOLE, "count": 2.0}, "count is 2.0"),
        ({**WHOLE, "share": "1"}, "share is '1'"),
        ({**WHOLE, "share": False}, "share is False"),
        ({**WHOLE, "told": 0}, "told is 0"),
        ({**WHOLE, "lists": [1]}, r"lists is \[1\]"),
        ({**WHOLE, "lists": [[1, "2"]]}, "lists is"),
        ({**WHOLE, "more": {"x": "y"}}, "more is"),
        ({**WHOLE, "name": ["a" * 500]}, r"name is \['a{78}, expected"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made_of(Row, value)


def test_a_value_alone() -> None:
    check({"a": [1, None]}, dict[str, list[int | None]], "x")
    with pytest.raises(ValueError, match=r"x is \{'a': \[1, 'b'\]\}, expected dict"):
        check({"a": [1, "b"]}, dict[str, list[int | None]], "x")
