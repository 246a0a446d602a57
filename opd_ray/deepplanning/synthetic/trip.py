"""What a row of the query file asks for: the trip and its hard constraints."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opd_ray.deepplanning.synthetic.kinds import check_constraints
from opd_ray.errors import InputError

REMEDY = "give rows of the official file travelplanning_query_en.json"


@dataclass(frozen=True)
class Trip:
    """A task of the benchmark.

    ``weekday`` is that of the first day, 1 for Monday; ``budget`` is in yuan, None without one.
    ``constraints`` are the hard constraints by their kind, each with its gold entities.
    """

    id: str
    origin: str
    destination: str
    departs: datetime.date
    days: int
    people: int
    rooms: int
    constraints: Mapping[str, Mapping[str, Any]]
    budget: int | None

    @property
    def returns(self) -> datetime.date:
        """The last day."""
        return self.departs + datetime.timedelta(days=self.days - 1)

    @property
    def weekdays(self) -> list[int]:
        """The weekday of each day, 1 for Monday."""
        return [(self.departs.weekday() + day) % 7 + 1 for day in range(self.days)]

    def of(self, group: str) -> dict[str, Mapping[str, Any]]:
        """The constraints whose kind begins with ``group``: hotel, restaurant, train, ..."""
        return {k: v for k, v in self.constraints.items() if k.startswith(f"{group}_")}

    def attraction_names(self) -> list[str]:
        """The attractions that must be visited, each once, in the order of the constraints."""
        names = (c["attraction_names"] for c in self.of("attraction").values())
        return list(dict.fromkeys(name for part in names for name in part))

    def restaurant_names(self) -> list[str]:
        """The restaurants where a meal must be had, each once."""
        return list(dict.fromkeys(c["restaurant_name"] for c in self.of("restaurant").values()))

    def meal_places(self) -> list[str]:
        """The attractions near which a meal is asked for, each once."""
        named = (c.get("attraction_name") for c in self.of("restaurant").values())
        return list(dict.fromkeys(name for name in named if name))

    def hotel_name(self) -> str | None:
        """The hotel that must be booked; None where the query leaves it open."""
        return next((str(c["hotel_name"]) for c in self.of("hotel").values()), None)


def read_trip(task: Mapping[str, Any]) -> Trip:
    """The trip of a row of the query file.

    Raises:
        InputError: a key that is missing or has a value that no trip can have.
    """
    if not isinstance(task, Mapping) or not str(task.get("id", "")).isdecimal():
        raise InputError(f"a row {str(task)[:60]!r} without a number as its id; {REMEDY}")
    place, meta = f"task {task['id']}", task.get("meta_info")
    if not isinstance(meta, Mapping):
        raise InputError(f"{place}: meta_info: no object there; {REMEDY}")
    try:
        departs = datetime.date.fromisoformat(meta["depart_date"])
        (destination,) = meta["dest"]
        constraints = meta["hard_constraints"]
        check_constraints(place, constraints)
        limit = constraints.get("budget_constraint") or meta.get("budget_constraint")
        trip = Trip(
            id=str(task["id"]),
            origin=str(meta["org"]),
            destination=str(destination),
            departs=departs,
            days=int(meta["days"]),
            people=int(meta["people_number"]),
            rooms=int(meta["room_number"]),
            constraints=constraints,
            budget=int(limit["max_budget"]) if limit else None,
        )
    except InputError:
        raise
    except KeyError as missing:
        raise InputError(f"{place}: meta_info: {missing} is missing; {REMEDY}") from missing
    except (TypeError, ValueError, AttributeError) as wrong:
        raise InputError(f"{place}: meta_info: {wrong}; {REMEDY}") from wrong
    if trip.days < 2 or trip.people < 1 or trip.rooms < 1:
        raise InputError(
            f"{place}: meta_info: days {trip.days}, people_number {trip.people}, room_number"
            f" {trip.rooms}; a trip has at least 2 days, 1 traveller and 1 room; {REMEDY}"
        )
    if meta.get("return_date") != trip.returns.isoformat():
        raise InputError(
            f"{place}: meta_info: return_date {meta.get('return_date')!r}, but {trip.days} days"
            f" from {trip.departs} end on {trip.returns}; {REMEDY}"
        )
    return trip
