"""A database as the solver reads it: what there is, where it is, and how far apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opd_ray.deepplanning.synthetic.attractions import WEEKDAYS
from opd_ray.deepplanning.synthetic.places import Road
from opd_ray.deepplanning.synthetic.tables import read_table
from opd_ray.errors import InputError

DAY_ENDS = 24 * 60 - 1


@dataclass(frozen=True)
class Ticket:
    """A direct train or flight; times are minutes of its day, ``price`` yuan a person.

    ``seats`` is how many are left, a large number where the table says nothing.
    """

    mode: str
    number: str
    start: str
    end: str
    departs: int
    arrives: int
    price: int
    seats: int


@dataclass(frozen=True)
class Visit:
    """Where one can be for a while: an attraction or a restaurant.

    ``opens`` and ``closes`` are minutes of the day, ``shortest`` and ``longest`` minutes of a
    stay, ``closed`` weekdays (1 for Monday), ``price`` yuan a person.
    """

    name: str
    price: int
    opens: int
    closes: int
    shortest: int
    longest: int
    closed: frozenset[int] = frozenset()


class TaskMap:
    """The tables of one task, looked up by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys = {
            row["poi_name"]: f"{row['latitude']},{row['longitude']}"
            for row in read_table(folder, "locations")
        }
        self._roads = {
            (row["origin"], row["destination"]): Road(
                int(row["distance_meters"]), int(row["duration_minutes"]), int(row["cost"])
            )
            for row in read_table(folder, "distances")
        }
        self.hotels = {row["name"]: int(row["price"]) for row in read_table(folder, "hotels")}
        rows = read_table(folder, "attractions")
        self.attractions = {row["attraction_name"]: _attraction(row) for row in rows}
        rows = read_table(folder, "restaurants")
        self.restaurants = {row["restaurant_name"]: _restaurant(row) for row in rows}

    def road(self, start: str, end: str) -> Road:
        """The way between two places by name.

        Raises:
            InputError: a place that is not in the tables, or no way between the two.
        """
        for name in (start, end):
            if name not in self._keys:
                raise InputError(f"{self._folder}: no place {name!r}; make the database again")
        way = self._roads.get((self._keys[start], self._keys[end]))
        if way is None:
            raise InputError(
                f"{self._folder}: no way from {start!r} to {end!r}; make the database again"
            )
        return way

    def tickets(self, origin: str, destination: str, date: str) -> list[Ticket]:
        """The direct journeys of a day that arrive on it."""
        tickets = []
        for mode, number in (("train", "train_no"), ("flight", "flight_no")):
            rows = [
                row
                for row in read_table(self._folder, f"{mode}s")
                if (row["origin_city"], row["destination_city"], row["dep_date"])
                == (origin, destination, date)
            ]
            changing = {row["route_index"] for row in rows if row["segment_index"] != "1"}
            tickets += [
                _ticket(mode, row[number], row)
                for row in rows
                if row["route_index"] not in changing and row["arr_datetime"][:10] == date
            ]
        return tickets


def _ticket(mode: str, number: str, row: Mapping[str, str]) -> Ticket:
    return Ticket(
        mode=mode,
        number=number,
        start=row["dep_station_name"],
        end=row["arr_station_name"],
        departs=minute(row["dep_datetime"][11:16]),
        arrives=minute(row["arr_datetime"][11:16]),
        price=int(row["price"]),
        seats=int(row["seat_status"] or 999),
    )


def _attraction(row: Mapping[str, str]) -> Visit:
    open_always = ":" not in row["opening_time"]
    return Visit(
        name=row["attraction_name"],
        price=int(row["ticket_price"]),
        opens=0 if open_always else minute(row["opening_time"]),
        closes=DAY_ENDS if open_always else minute(row["closing_time"]),
        shortest=round(60 * float(row["min_visit_hours"])),
        longest=round(60 * float(row["max_visit_hours"])),
        closed=frozenset(n for n, day in enumerate(WEEKDAYS, 1) if day in row["closing_dates"]),
    )


def _restaurant(row: Mapping[str, str]) -> Visit:
    opens, closes = minute(row["opening_time"]), minute(row["closing_time"])
    return Visit(
        name=row["restaurant_name"],
        price=int(row["price_per_person"]),
        opens=opens,
        closes=closes if closes > opens else DAY_ENDS,
        shortest=60,
        longest=90,
    )


def minute(clock: str) -> int:
    """The minute of the day of HH:MM."""
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
