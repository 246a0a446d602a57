"""A travel plan as the prompt prescribes it, line by line, as the evaluator's JSON.

As tolerant as a reader: of Markdown around a line, other dashes and commas, prices with thousands'
commas, " - " within names. What cannot be read is left out and told in ``problems``; no response
raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opd_ray.deepplanning.travel.lines import (
    Fields,
    RouteNames,
    amount_in,
    fields_of,
    legs_number,
    plain,
    price_of,
)

_PLAN = re.compile(r"<plan>(.*?)</plan>", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(r"</think>", re.IGNORECASE)
_DAY = re.compile(r"day\s*([0-9]{1,3})\s*(?:[:：(（|,.–—-].*)?", re.IGNORECASE)
_SUMMARY = re.compile(r"budget\b", re.IGNORECASE)
_CLOCK = r"([0-9]{1,2})[:：]([0-9]{2})"
_ACTIVITY = re.compile(rf"\|?\s*{_CLOCK}\s*[-–—~]\s*{_CLOCK}\s*\|\s*([^|]*?)\s*(?:\|\s*(.*))?")
_NAMED = re.compile(r"([a-z &]+?)\s*[:：]\s*(.*)", re.IGNORECASE)
# Lines of the budget by how their names begin.
_BUDGET = {
    "transport": "transportation",
    "accommodation": "accommodation",
    "meal": "meals",
    "attraction": "attractions_and_tickets",
    "other": "other",
    "total": "total_estimated_budget",
}
_NO_HOTEL = ("", "-", "–", "—", "none", "n/a", "null")
_MEALS = ("breakfast", "brunch", "lunch", "afternoon tea", "dinner", "supper", "snack")


@dataclass
class Plan:
    """What a response says of a plan."""

    given: bool = False  # whether there is one between the tags
    text: str = ""  # it, as the response has it
    budget: dict[str, Any] = field(default_factory=dict)
    days: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of lines that could not be read

    @property
    def as_json(self) -> dict[str, Any]:
        """In the evaluator's form; one without days scores 0 there."""
        return {"budget_summary": self.budget, "daily_plans": self.days}


def plan_text(response: str) -> str:
    """What stands between ``<plan>`` and ``</plan>`` behind the thinking; "" where nothing does."""
    said = _THOUGHT.split(response)[-1]
    return "\n\n".join(text.strip() for text in _PLAN.findall(said) if text.strip())


def read_plan(response: str) -> Plan:
    """The plan of a response."""
    text = plan_text(response)
    plan = Plan(given=bool(text), text=text)
    reader = _Reader(plan)
    for number, line in enumerate(text.splitlines(), 1):
        reader.take(number, plain(line))
    reader.finish()
    if text and not plan.days:
        plan.problems.append("no line says which day it is about")
    return plan


class _Reader:
    """Reads line by line, knowing which day or summary it is in."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._in_summary = False
        # Routes are split at the end, when all names of the plan are known.
        self._routes: list[tuple[dict[str, Any], str]] = []

    def take(self, number: int, line: str) -> None:
        if not line:
            return
        if found := _ACTIVITY.fullmatch(line):
            self._activity(number, *found.groups())
        elif _SUMMARY.match(line):
            self._in_summary = True
        elif found := _DAY.fullmatch(line):
            self._in_summary = False
            self._plan.days.append(
                {"day_number": int(found[1]), "current_city": "", "activities": []}
            )
        elif found := _NAMED.fullmatch(line):
            self._named(" ".join(found[1].lower().split()), found[2])
        elif "|" in line:
            self._plan.problems.append(f"line {number} is no activity: {line[:80]!r}")

    def finish(self) -> None:
        """Split the routes into where they begin and end."""
        names = RouteNames(_names(self._plan.days))
        for details, route in self._routes:
            ends = names.split(route)
            if ends is None:
                self._plan.problems.append(f"no route with two ends: {route[:80]!r}")
                details["from"], details["to"] = route, ""
            else:
                details["from"], details["to"] = ends

    def _named(self, name: str, value: str) -> None:
        day = self._plan.days[-1] if self._plan.days else None
        if day is None or self._in_summary or day["activities"]:
            key = next((key for start, key in _BUDGET.items() if name.startswith(start)), None)
            amount = amount_in(value)
            if key is not None and amount is not None:
                self._plan.budget.setdefault(key, amount)
                self._plan.budget.setdefault("currency", "CNY")
        elif name == "current city":
            day["current_city"] = value
        elif name == "accommodation" and value.lower() not in _NO_HOTEL:
            hotel, price = price_of(value)
            day["accommodation"] = {"name": hotel, "price_per_night": price}

    def _activity(
        self, number: int, h1: str, m1: str, h2: str, m2: str, kind: str, said: str | None
    ) -> None:
        if not self._plan.days:
            self._plan.problems.append(f"line {number} stands before the first day")
            return
        day = self._plan.days[-1]
        self._in_summary = False
        kind = re.sub(r"[\s-]+", "_", kind.lower())
        fields = fields_of(said or "")
        make = _DETAILS.get(kind)
        if make is None:
            self._plan.problems.append(f"line {number}: {kind[:40]!r} is no type of activity")
            details: dict[str, Any] = {"description": said or ""}
        else:
            details = make(fields, day, int(h1))
        if kind.startswith("travel_"):
            self._routes.append((details, fields.rest))
        slot = f"{h1:0>2}:{m1}-{h2:0>2}:{m2}"
        day["activities"].append({"time_slot": slot, "type": kind, "details": details})


def _intercity(fields: Fields, day: dict[str, Any], hour: int) -> dict[str, Any]:
    price = fields.take_price()
    mode, number = legs_number(fields.take_first())
    return {"mode": mode, "number": number, "from": "", "to": "", "cost": price}


def _city(fields: Fields, day: dict[str, Any], hour: int) -> dict[str, Any]:
    price = fields.take_price()
    duration, distance = fields.take_duration(), fields.take_distance()
    duration = duration or fields.take_duration()  # the two the other way about
    return {"from": "", "to": "", "distance": distance, "duration": duration, "cost": price}


def _attraction(fields: Fields, day: dict[str, Any], hour: int) -> dict[str, Any]:
    price = fields.take_price()
    return {"name": fields.rest, "city": _city_now(day), "cost": price}


def _meal(fields: Fields, day: dict[str, Any], hour: int) -> dict[str, Any]:
    price = fields.take_price()
    meal = fields.take_first(_MEALS)
    if meal is None:
        meal = "breakfast" if hour < 10 else "lunch" if hour < 16 else "dinner"
    return {"meal_type": meal.lower(), "name": fields.rest, "cost": price}


def _hotel(fields: Fields, day: dict[str, Any], hour: int) -> dict[str, Any]:
    if fields.rest == day.get("accommodation", {}).get("name"):
        return {"activity": "", "name": fields.rest}
    activity = fields.take_first()
    return {"activity": activity, "name": fields.rest}


def _buffer(fields: Fields, day: dict[str, Any], hour: int) -> dict[str, Any]:
    return {"description": fields.rest}


_DETAILS = {
    "travel_intercity_public": _intercity,
    "travel_city": _city,
    "attraction": _attraction,
    "meal": _meal,
    "hotel": _hotel,
    "buffer": _buffer,
}


def _city_now(day: dict[str, Any]) -> str:
    """Of a day "from A to B": A before the first way between cities, B behind it."""
    found = re.fullmatch(r"from\s+(.+?)\s+to\s+(.+)", day["current_city"], re.IGNORECASE)
    if found is None:
        return day["current_city"]
    gone = any(act["type"] == "travel_intercity_public" for act in day["activities"])
    return found[2] if gone else found[1]


def _names(days: list[dict[str, Any]]) -> Iterator[str]:
    """Names of places that stand alone on their lines."""
    for day in days:
        yield day.get("accommodation", {}).get("name", "")
        for act in day["activities"]:
            if act["type"] in ("attraction", "meal", "hotel"):
                yield act["details"]["name"]
