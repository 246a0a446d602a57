"""A database for each task, in the layout of the official ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from opd_ray.deepplanning.synthetic.attractions import attraction_row, build_attractions
from opd_ray.deepplanning.synthetic.hotels import brand_asked, build_hotels, hotel_row
from opd_ray.deepplanning.synthetic.journeys import journey_rows
from opd_ray.deepplanning.synthetic.places import Place, Surveyor, road
from opd_ray.deepplanning.synthetic.restaurants import (
    build_restaurants,
    restaurant_row,
    wishes_of,
)
from opd_ray.deepplanning.synthetic.stations import Stations, build_stations
from opd_ray.deepplanning.synthetic.tables import write_table
from opd_ray.deepplanning.synthetic.timetable import Timetable, change_city, demand_of
from opd_ray.deepplanning.synthetic.trip import Trip, read_trip
from opd_ray.errors import InputError, OutputFolderError
from opd_ray.seeds import derive_seed
from opd_ray.whole_file import write_whole

MARKER = "synthetic.json"


def write_databases(tasks: Iterable[Mapping[str, Any]], folder: Path, seed: int) -> list[Path]:
    """Write ``folder/id_<n>/`` for each row of the query file; equal seeds give equal files.

    Args:
        tasks: rows of the query file: ``id`` and ``meta_info`` are read.
        folder: made if missing; a synthetic database there is replaced task by task.
        seed: of all that is drawn; a task's files depend on it and on that task alone.

    Returns:
        The folders of the tasks.

    Raises:
        InputError: a row that is no task, or no rows, or two of one id.
        OutputFolderError: the folder holds a database that is not synthetic.
    """
    trips = [read_trip(task) for task in tasks]
    for trip in trips:
        _check_sentences(trip)
    if not trips:
        raise InputError("no task to make a database for; give rows of the query file")
    ids = [trip.id for trip in trips]
    if twice := next((n for n in ids if ids.count(n) > 1), None):
        raise InputError(f"task {twice}: twice among the tasks; give each id once")
    if not is_synthetic(folder) and any(folder.glob("id_*")):
        raise OutputFolderError(
            f"{folder}: holds a database that is not synthetic; give another folder"
        )
    write_whole(folder / MARKER, _marker(seed))
    return [_write_database(trip, folder / f"id_{trip.id}", seed) for trip in trips]


def is_synthetic(folder: Path) -> bool:
    """Whether ``folder``, all tasks' or that of one, was written by ``write_databases``."""
    return (folder / MARKER).is_file()


def _check_sentences(trip: Trip) -> None:
    """Read what constraints say in their sentences, before anything is written."""
    wishes_of(trip)
    for kind, constraint in trip.of("hotel").items():
        brand_asked(trip, kind, constraint)
    for mode in ("train", "flight"):
        for direction in ("outbound", "inbound"):
            demand_of(trip, mode, direction)


def _marker(seed: int) -> str:
    says = "Invented entities around the queries' constraints; figures on it are synthetic."
    return json.dumps({"synthetic": True, "seed": seed, "says": says}, indent=2) + "\n"


def _write_database(trip: Trip, folder: Path, seed: int) -> Path:
    rng = random.Random(derive_seed(seed, "deepplanning", trip.id))
    surveyor = Surveyor(rng)
    origin, destination = (build_stations(c, surveyor) for c in (trip.origin, trip.destination))
    change = build_stations(change_city(trip), surveyor)
    hotels = build_hotels(trip, surveyor, rng)
    attractions = build_attractions(trip, surveyor, rng)
    listings = build_restaurants(trip, attractions, surveyor, rng)
    restaurants = {restaurant.name: restaurant for _, restaurant in listings}
    numbers = {name: number for number, name in enumerate(restaurants, 1)}
    places = [
        *(place for city in (origin, destination, change) for place in city.all()),
        *(hotel.place for hotel in hotels),
        *(attraction.place for attraction in attractions),
        *(restaurant.place for restaurant in restaurants.values()),
    ]
    write_whole(folder / MARKER, _marker(seed))
    for mode in ("train", "flight"):
        write_table(folder, f"{mode}s", _routes(trip, mode, origin, destination, change, rng))
    write_table(folder, "hotels", (hotel_row(hotel, trip.destination) for hotel in hotels))
    write_table(
        folder,
        "attractions",
        (attraction_row(a, trip.destination, n) for n, a in enumerate(attractions, 1)),
    )
    write_table(
        folder,
        "restaurants",
        (restaurant_row(listing, numbers[listing[1].name]) for listing in listings),
    )
    write_table(folder, "locations", (_location(place) for place in places))
    write_table(folder, "distances", _distances(places))
    return folder


def _routes(
    trip: Trip,
    mode: str,
    origin: Stations,
    destination: Stations,
    change: Stations,
    rng: random.Random,
) -> Iterator[dict[str, str]]:
    index = 0
    for start, end, date in (
        (origin, destination, trip.departs),
        (destination, origin, trip.returns),
    ):
        for journey in Timetable(trip, mode, start, end, rng).build(change):
            index += 1
            yield from journey_rows(journey, start.city, end.city, date, index)


def _location(place: Place) -> dict[str, str]:
    return {
        "poi_name": place.name,
        "latitude": place.latitude,
        "longitude": place.longitude,
        "poi_type": place.kind,
    }


def _distances(places: list[Place]) -> Iterator[dict[str, str]]:
    """Every ordered pair of places that are not the same; there and back the way is equal."""
    for start, end in combinations(places, 2):
        way = road(start, end)
        length = {
            "distance_meters": str(way.metres),
            "duration_minutes": str(way.minutes),
            "cost": str(way.cost),
        }
        yield {"origin": start.key, "destination": end.key, **length}
        yield {"origin": end.key, "destination": start.key, **length}
