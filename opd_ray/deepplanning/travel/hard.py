"""The hard constraints of a travel task, judged by the words of a plan, without a database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

Plan = Mapping[str, Any]
Meta = Mapping[str, Any]

_FLIGHT = ("flight", "飞机", "airplane", "plane")
_TRAIN = ("train", "火车", "railway", "高铁", "gaotie")
# People that fit into a taxi.
_SEATS = 4


def judged(plan: Plan, meta: Meta) -> dict[str, bool]:
    """Whether a plan meets each hard constraint of a task, by kind; unknown kinds are left out.

    The verdicts are those of the benchmark's own ``eval_hard``. A plan in which something is of the
    wrong form meets no constraint for which that is looked at.

    Args:
        plan: in the evaluator's form.
        meta: ``meta_info`` of the task.
    """
    found = {}
    for kind, wanted in meta.get("hard_constraints", {}).items():
        judge = next((j for start, j in _JUDGES.items() if kind.startswith(start)), None)
        if kind == "budget_constraint":
            judge = _within_budget
        if judge is None:
            continue
        try:
            found[kind] = judge(plan, wanted, meta)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            found[kind] = False
    return found


def _legs(plan: Plan, wanted: Mapping[str, Any], modes: tuple[str, ...], name: str) -> bool:
    taken = {
        details.get("number", "")
        for details in _details(plan, "travel_intercity_public")
        if details.get("mode", "").lower() in modes
    }
    keys = (f"outbound_{name}_no", f"inbound_{name}_no")
    return all(wanted[key] in taken for key in keys if key in wanted)


def _flights(plan: Plan, wanted: Mapping[str, Any], meta: Meta) -> bool:
    return _legs(plan, wanted, _FLIGHT, "flight")


def _trains(plan: Plan, wanted: Mapping[str, Any], meta: Meta) -> bool:
    return _legs(plan, wanted, _TRAIN, "train")


def _hotel(plan: Plan, wanted: Mapping[str, Any], meta: Meta) -> bool:
    stays = [day.get("accommodation") for day in plan.get("daily_plans", ())]
    names = {stay.get("name", "") for stay in stays if stay}
    return bool(name := wanted.get("hotel_name")) and name in names


def _restaurant(plan: Plan, wanted: Mapping[str, Any], meta: Meta) -> bool:
    names = {details.get("name", "") for details in _details(plan, "meal")}
    return bool(name := wanted.get("restaurant_name")) and name in names


def _attractions(plan: Plan, wanted: Mapping[str, Any], meta: Meta) -> bool:
    names = {details.get("name", "") for details in _details(plan, "attraction")}
    asked = wanted.get("attraction_names", [])
    return bool(asked) and all(name in names for name in asked)


def _details(plan: Plan, kind: str) -> Iterator[Mapping[str, Any]]:
    """The details of all activities of a kind."""
    for day in plan.get("daily_plans", ()):
        for activity in day["activities"] if "activities" in day else ():  # noqa: SIM401
            if activity.get("type") == kind:
                yield activity.get("details", {})


_JUDGES: dict[str, Callable[[Plan, Mapping[str, Any], Meta], bool]] = {
    "flight_": _flights,
    "train_": _trains,
    "hotel_": _hotel,
    "restaurant_": _restaurant,
    "attraction_": _attractions,
}


def _within_budget(plan: Plan, wanted: Mapping[str, Any], meta: Meta) -> bool:
    """Whether what the plan's own lines cost is no more than the budget."""
    most = wanted.get("max_budget")
    days = plan.get("daily_plans", [])
    if most is None or not days:
        return False
    people = int(meta.get("people_number", 1))
    rooms = int(meta.get("room_number", 1))
    taxis = max(1, (people + _SEATS - 1) // _SEATS)
    travel = _total(
        chain(
            (leg * people for day in days if (leg := _first_leg(day)) > 0),
            (cost * taxis for cost in _costs(days, "travel_city")),
        )
    )
    nights = _total(_night(day) * rooms for day in days[:-1])
    meals = _total(cost * people for cost in _costs(days, "meal"))
    tickets = _total(cost * people for cost in _costs(days, "attraction"))
    return travel + nights + meals + tickets <= float(most)


def _total(costs: Iterable[float]) -> float:
    """One after another: ``sum`` rounds otherwise, by the version of Python."""
    total = 0.0
    for cost in costs:
        total += cost
    return total


def _costs(days: list[Any], kind: str) -> Iterator[float]:
    """The costs of all activities of a kind that say one."""
    for day in days:
        for activity in day.get("activities", []) or []:
            if activity.get("type") == kind:
                cost = (activity.get("details") or {}).get("cost")
                yield _amount(cost) or 0.0 if cost else 0.0


def _first_leg(day: Mapping[str, Any]) -> float:
    """The price of a day's first way between cities, which is that of the whole journey."""
    for activity in day.get("activities", []) or []:
        if activity.get("type") == "travel_intercity_public":
            price = _amount((activity.get("details") or {}).get("cost", 0))
            if price is not None:
                return price
    return 0.0


def _night(day: Mapping[str, Any]) -> float:
    """The price of a room for the night behind a day."""
    stay = day.get("accommodation")
    if not isinstance(stay, dict):
        return 0.0
    price = stay.get("price") or stay.get("price_per_night") or stay.get("cost")
    return _amount(price) or 0.0 if price else 0.0


def _amount(written: Any) -> float | None:
    """A cost as a number; None where it is none."""
    try:
        return float(written)
    except (TypeError, ValueError, OverflowError):
        return None
