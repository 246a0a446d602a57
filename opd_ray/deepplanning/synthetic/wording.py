"""What a constraint says only in its sentence, ``constraint_context``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from opd_ray.errors import InputError

BRANDS = {
    "Ji Hotel": ("全季", "Ji Hotel", "Ji brand"),
    "Atour Hotel": ("亚朵", "Atour"),
    "Marriott": ("万豪", "Marriott"),
    "Hilton": ("希尔顿", "Hilton"),
    "Home Inn": ("如家", "Home Inn"),
    "Jinjiang Inn": ("锦江", "Jinjiang"),
    "Hanting Hotel": ("汉庭", "Hanting"),
    "Orange Hotel": ("桔子", "Orange"),
}
CUISINES = {
    "Western Cuisine": ("western",),
    "Fast Food": ("fast food",),
    "Seafood": ("seafood",),
    "Sichuan Cuisine": ("sichuan",),
    "Halal Cuisine": ("halal",),
    "Japanese Cuisine": ("japanese",),
    "Cantonese Cuisine": ("cantonese",),
    "Hot Pot": ("hot pot", "hotpot"),
}
TAGS = {
    "Waiting Area": ("waiting area",),
    "Online Queue": ("online number", "online queue"),
    "Birthday Package": ("birthday",),
    "Outdoor Seating": ("outdoor seating",),
    "Must-Eat Top 10": ("must-eat",),
    "Private Room": ("private room",),
}
MAKERS = {"Airbus": ("airbus",), "Boeing": ("boeing",)}
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*(AM|PM)?", re.IGNORECASE)


def named(place: str, constraint: Mapping[str, Any], words: Mapping[str, tuple[str, ...]]) -> str:
    """The first key of ``words`` one of whose words the sentence has.

    Raises:
        InputError: the sentence has none of them.
    """
    text = sentence(constraint)
    for name, signs in words.items():
        if any(sign.lower() in text.lower() for sign in signs):
            return name
    raise InputError(
        f"{place}: constraint_context: {text!r} names none of {', '.join(words)}; say in it which"
        " is asked for"
    )


def clock_range(place: str, constraint: Mapping[str, Any]) -> tuple[int, int]:
    """The minutes of the day between which something must begin or end: 6:00 AM is 360.

    An end at 12:00 AM is the end of the day, 1440.

    Raises:
        InputError: the sentence does not have two clock times, the first before the second.
    """
    text = sentence(constraint)
    _, _, after = text.partition("between")
    times = [_minutes(found) for found in _CLOCK.finditer(after)][:2]
    if len(times) == 2 and times[1] == 0:
        times[1] = 24 * 60
    if len(times) != 2 or not 0 <= times[0] < times[1] <= 24 * 60:
        raise InputError(
            f"{place}: constraint_context: {text!r} has no range of time; write it as 'between"
            " 7:00 AM and 11:00 AM'"
        )
    return times[0], times[1]


def sentence(constraint: Mapping[str, Any]) -> str:
    """The constraint in words; empty where the row has none."""
    return str(constraint.get("constraint_context", ""))


def _minutes(found: re.Match[str]) -> int:
    hour, minute, half = int(found[1]), int(found[2] or 0), (found[3] or "").upper()
    if half:
        hour = hour % 12 + (12 if half == "PM" else 0)
    return hour * 60 + minute
