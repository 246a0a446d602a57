"""JSON of a file held against the dataclass that it was written from."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, Union

T = typing.TypeVar("T")


def made_of(cls: type[T], value: Any) -> T:
    """The record of class ``cls``, a dataclass of plain values, that a JSON object stands for.

    Raises:
        ValueError: it is no such object; names the field.
    """
    if problem := next(_problems(cls, value), None):
        raise ValueError(problem)
    return cls(**value)


def check(value: Any, hint: Any, name: str) -> None:
    """Refuse a JSON value that is of another type than ``hint``.

    Raises:
        ValueError: names the value, ``name`` and what is below it.
    """
    if not _fits(value, hint):
        expected = getattr(hint, "__name__", hint) if isinstance(hint, type) else hint
        raise ValueError(f"{name} is {value!r:.80}, expected {expected}")


def _problems(cls: Any, value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"expected an object, found {value!r:.80}"
        return
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}
    for name, field in known.items():
        needed = field.default is MISSING and field.default_factory is MISSING
        if name not in value and needed:
            yield f"{name} is missing"
    for name, part in value.items():
        if name not in known:
            yield f"{name!r:.80} is not known"
        elif not _fits(part, hints[name]):
            yield f"{name} is {part!r:.80}, expected {hints[name]}"


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    return isinstance(value, hint)
