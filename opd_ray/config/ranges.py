"""The numbers that a key may hold, said in its dataclass field and checked in one place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

_KEY = "range"


@dataclass(frozen=True)
class Range:
    """Finite numbers between two bounds; NaN lies in none."""

    words: str  # "must be at least 1"
    low: float
    high: float = math.inf
    low_excluded: bool = False
    high_excluded: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` is one of them."""
        above = value > self.low if self.low_excluded else value >= self.low
        below = value < self.high if self.high_excluded else value <= self.high
        return above and below and value < math.inf


def at_least(least: int) -> dict[str, Any]:
    """Metadata of a field that holds ``least`` or more."""
    return {_KEY: Range(f"must be at least {least}", least)}


def share_below_one(remedy: str = "") -> dict[str, Any]:
    """Metadata of a field that holds 0, but not 1, and all between; ``remedy`` ends the message."""
    return {_KEY: Range(f"must lie in [0, 1){remedy}", 0, 1, high_excluded=True)}


# Metadata of a field, as of at_least().
ABOVE_ZERO: dict[str, Any] = {_KEY: Range("must be above 0", 0, low_excluded=True)}
ZERO_OR_ONE: dict[str, Any] = {_KEY: Range("must be 0 or 1", 0, 1)}
SHARE: dict[str, Any] = {_KEY: Range("must lie in [0, 1]", 0, 1)}
SHARE_ABOVE_ZERO: dict[str, Any] = {
    _KEY: Range("must be above 0 and at most 1", 0, 1, low_excluded=True)
}


def range_words(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The range of a field with this metadata, as "at least 1"; nothing where it has none."""
    allowed: Range | None = metadata.get(_KEY)
    if allowed is not None:
        yield allowed.words.removeprefix("must ").removeprefix("be ").removeprefix("lie ")


def range_problems(section: str, settings: Any, told: Any = None) -> Iterator[str]:
    """Every number of a section outside its range; null is in every range.

    Args:
        section: under which key the settings stand, for messages.
        settings: a dataclass; sections inside it are checked by themselves.
        told: settings whose problems are told already, which these may have inherited.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        known = told is not None and getattr(told, field.name) == value
        allowed: Range | None = field.metadata.get(_KEY)
        if allowed and value is not None and not known and not allowed.holds(value):
            finite = " and finite" if value == math.inf else ""
            yield f"{section}.{field.name} = {value}: {allowed.words}{finite}"
