"""A solver: a whole plan that meets all that a task asks for, from the tables of its database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opd_ray.deepplanning.synthetic.day import Layout, meal, sight
from opd_ray.deepplanning.synthetic.map import TaskMap, Ticket, Visit
from opd_ray.deepplanning.synthetic.plan import Activity, Day, Plan, ride
from opd_ray.deepplanning.synthetic.trip import Trip, read_trip
from opd_ray.errors import InputError

_MORNING = 8 * 60 + 30
_LATEST_ARRIVAL = 22 * 60
_CHECK_IN = 20
_AFTER = {"train": 15, "flight": 40}
_BEFORE = {"train": 30, "flight": 75}
_LONGEST_WAIT = 60
_EFFORTS = 4


def gold_plan(task: Mapping[str, Any], folder: Path) -> Plan:
    """A plan for a row of the query file, from ``folder/id_<n>/``.

    It is feasible, keeps every hard constraint by its gold entities, and stays in the budget.

    Raises:
        InputError: a table is missing or broken, or no plan was found.
    """
    trip = read_trip(task)
    planner = _Planner(trip, TaskMap(folder / f"id_{trip.id}"))
    for there, back in planner.tickets():
        for effort in range(_EFFORTS):
            plan = planner.plan(there, back, effort)
            if plan and (trip.budget is None or plan.costs().total <= trip.budget):
                return plan
    raise InputError(
        f"task {trip.id}: no plan found in {folder / f'id_{trip.id}'}; make the database again"
    )


@dataclass
class _Open:
    """What is still to be visited, and what was."""

    sights: list[str]
    meals: list[str]
    used: set[str] = field(default_factory=set)

    def copy(self) -> _Open:
        return _Open(list(self.sights), list(self.meals), set(self.used))

    def done(self, name: str) -> None:
        self.used.add(name)
        for names in (self.sights, self.meals):
            if name in names:
                names.remove(name)


@dataclass(frozen=True)
class _Shape:
    """What a day may hold: meals in order of preference, and how many sights.

    ``begin`` makes its layout up to the first stop, ``finish`` adds the end, False if too late.
    """

    meals: list[tuple[str, ...]]
    fewest: int
    usual: int
    weekday: int
    begin: Callable[[], Layout]
    finish: Callable[[Layout], bool]


class _Planner:
    def __init__(self, trip: Trip, task_map: TaskMap) -> None:
        self._trip, self._map = trip, task_map
        self._hotel = trip.hotel_name() or min(task_map.hotels, key=task_map.hotels.__getitem__)
        if self._hotel not in task_map.hotels:
            raise InputError(f"task {trip.id}: no hotel {self._hotel!r} in its database")

    def tickets(self) -> Iterator[tuple[Ticket, Ticket]]:
        """There and back, the better pairs first."""
        trip = self._trip
        there = self._candidates("outbound", trip.origin, trip.destination, str(trip.departs))
        back = self._candidates("inbound", trip.destination, trip.origin, str(trip.returns))
        yield from ((out, home) for out in there for home in back)

    def _candidates(self, direction: str, start: str, end: str, date: str) -> list[Ticket]:
        """Those asked for; else all with seats enough, by mode, time of day and price."""
        trip = self._trip
        modes = [mode for mode in ("train", "flight") if trip.of(mode)]
        asked = {
            str(c[f"{direction}_{mode}_no"])
            for mode in modes
            for c in trip.of(mode).values()
            if f"{direction}_{mode}_no" in c
        }

        def order(ticket: Ticket) -> tuple[bool, bool, int]:
            late = ticket.arrives > 13 * 60 if direction == "outbound" else ticket.departs < 15 * 60
            return bool(modes) and ticket.mode not in modes, late, ticket.price

        found = [t for t in self._map.tickets(start, end, date) if t.seats >= trip.people]
        if asked:
            return [t for t in found if t.number in asked]
        if direction == "outbound":
            found = [t for t in found if t.arrives <= _LATEST_ARRIVAL]
        return sorted(found, key=order)

    def plan(self, there: Ticket, back: Ticket, effort: int) -> Plan | None:
        """A plan with these tickets; ``effort`` more sights a day than usual where they fit."""
        trip, todo = self._trip, _Open(self._trip.attraction_names(), self._trip.restaurant_names())
        days = []
        for number, weekday in enumerate(trip.weekdays, 1):
            if number == 1:
                shape, city = (
                    self._first(there, weekday),
                    f"from {trip.origin} to {trip.destination}",
                )
            elif number == trip.days:
                shape, city = self._last(back, weekday), f"from {trip.destination} to {trip.origin}"
            else:
                shape, city = self._full(weekday), trip.destination
            left = trip.days - number + 1
            wanted = max(shape.usual + effort, -(-len(todo.sights) // left))
            activities = self._fill(shape, wanted, todo)
            if activities is None:
                return None
            hotel = self._hotel if number < trip.days else None
            price = self._map.hotels[self._hotel] if hotel else 0
            days.append(Day(number, city, hotel, price, activities))
        return None if todo.sights or todo.meals else Plan(days, trip.people, trip.rooms)

    def _first(self, ticket: Ticket, weekday: int) -> _Shape:
        both: tuple[str, ...] = ("Lunch", "Dinner")
        meals = [both] if ticket.arrives < 600 else [both, ("Dinner",), ("Lunch",)]
        if ticket.arrives >= 900:
            meals = [("Dinner",), ()]

        def begin() -> Layout:
            layout = Layout(self._map, self._trip.destination, ticket.departs, ticket.start)
            layout.add(ride(ticket), ticket.end)
            layout.wait(layout.now + _AFTER[ticket.mode], "Getting off, luggage")
            layout.go(self._hotel)
            details = {"activity": "Check-in", "name": self._hotel}
            stay = Activity(layout.now, layout.now + _CHECK_IN, "hotel", details)
            layout.add(stay, self._hotel)
            return layout

        early = ticket.arrives < 720
        usual = 2 if ticket.arrives < 600 else int(ticket.arrives < 840)
        return _Shape(meals, int(early), usual, weekday, begin, self._to_bed)

    def _full(self, weekday: int) -> _Shape:
        def begin() -> Layout:
            return Layout(self._map, self._trip.destination, _MORNING, self._hotel)

        return _Shape([("Lunch", "Dinner")], 2, 2, weekday, begin, self._to_bed)

    def _last(self, ticket: Ticket, weekday: int) -> _Shape:
        meals: list[tuple[str, ...]] = [()]
        if ticket.departs >= 540:
            meals = [("Lunch",), ()]
        if ticket.departs >= 900:
            meals = [("Lunch",), ("Lunch", "Dinner")]

        def begin() -> Layout:
            start = min(_MORNING, ticket.departs - 150)
            return Layout(self._map, self._trip.destination, start, self._hotel)

        def finish(layout: Layout) -> bool:
            way = self._map.road(layout.here, ticket.start).minutes
            leave = ticket.departs - _BEFORE[ticket.mode] - way
            if layout.now > leave:
                return False
            layout.linger(leave)
            layout.go(ticket.start)
            layout.wait(ticket.departs, "Security check, waiting")
            layout.add(ride(ticket), ticket.end)
            return True

        fewest = int(ticket.departs > 960)
        return _Shape(meals, fewest, fewest + int(ticket.departs > 900), weekday, begin, finish)

    def _to_bed(self, layout: Layout) -> bool:
        if layout.here == self._hotel:
            layout.sleep(self._hotel)
            return True
        return layout.to_bed(self._hotel)

    def _fill(self, shape: _Shape, wanted: int, todo: _Open) -> list[Activity] | None:
        """The activities of a day, with as many sights as fit up to ``wanted``; ``todo`` shrinks.

        Where more than one choice of meals fits, the one with the most that are asked for is taken.
        """
        by_meals = sorted(shape.meals, key=lambda m: -min(len(m), len(todo.meals)))
        for meals in by_meals:
            for count in range(max(wanted, shape.fewest), shape.fewest - 1, -1):
                for before in {1: (1, 0), 0: (0,)}.get(count, (count // 2, 1, 2, 0)):
                    left = todo.copy()
                    layout = shape.begin()
                    if self._stops(layout, meals, count, before, shape.weekday, left) and (
                        shape.finish(layout)
                    ):
                        todo.sights, todo.meals, todo.used = left.sights, left.meals, left.used
                        return layout.activities
        return None

    def _stops(
        self,
        layout: Layout,
        meals: tuple[str, ...],
        count: int,
        before: int,
        weekday: int,
        todo: _Open,
    ) -> bool:
        """``before`` sights, lunch, the other sights, dinner; False where one finds no place."""
        first = before if "Lunch" in meals else 0
        kinds = [*[""] * first, *meals[:1], *[""] * (count - first), *meals[1:]]
        if meals[:1] == ("Dinner",):
            kinds = [*[""] * count, "Dinner"]
        return all(
            self._meal(layout, kind, todo) if kind else self._sight(layout, weekday, todo)
            for kind in kinds
        )

    def _sight(self, layout: Layout, weekday: int, todo: _Open) -> bool:
        """The nearest of those asked for, else one near which a meal is, else a cheap one."""
        near_meals = set(self._trip.meal_places())

        def order(visit: Visit) -> tuple[bool, bool, int]:
            way = self._map.road(layout.here, visit.name).minutes
            asked = visit.name in todo.sights
            return not asked, visit.name not in near_meals, way + (0 if asked else visit.price)

        there = self._map.attractions.values()
        visits = [v for v in there if v.name not in todo.used and weekday not in v.closed]
        for visit in sorted(visits, key=order):
            soon = layout.now + self._map.road(layout.here, visit.name).minutes + _LONGEST_WAIT
            if visit.opens <= soon and layout.stop(sight(visit)):
                todo.done(visit.name)
                return True
        return False

    def _meal(self, layout: Layout, kind: str, todo: _Open) -> bool:
        """The nearest of those asked for, else a cheap one not far away."""

        def order(visit: Visit) -> tuple[bool, int]:
            way = self._map.road(layout.here, visit.name).minutes
            asked = visit.name in todo.meals
            return not asked, way if asked else 2 * way + visit.price

        for visit in sorted(self._unused(todo), key=order):
            if layout.stop(meal(visit, kind)):
                todo.done(visit.name)
                return True
        return False

    def _unused(self, todo: _Open) -> Iterable[Visit]:
        return [v for v in self._map.restaurants.values() if v.name not in todo.used]
