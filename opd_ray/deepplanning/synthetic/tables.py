"""The seven CSV files of a database: their names, their columns, read and written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from opd_ray.borders import border
from opd_ray.errors import InputError
from opd_ray.whole_file import write_whole

_ROUTE = (
    "origin_city",
    "destination_city",
    "dep_date",
    "route_index",
    "segment_index",
    "dep_station_code",
    "dep_station_name",
    "arr_station_code",
    "arr_station_name",
    "dep_datetime",
    "arr_datetime",
    "duration",
)
_SEAT = ("seat_class", "seat_status", "price")
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "trains": ("trains/trains.csv", (*_ROUTE, "train_type", "train_no", *_SEAT)),
    "flights": (
        "flights/flights.csv",
        (*_ROUTE, "airline", "flight_no", "equip_size", "equip_type", "manufacturer", *_SEAT),
    ),
    "hotels": (
        "hotels/hotels.csv",
        (
            "name",
            "city",
            "address",
            "latitude",
            "longitude",
            "decoration_time",
            "hotel_star",
            "price",
            "score",
            "brand",
            "services",
            "tags",
            "stock",
        ),
    ),
    "attractions": (
        "attractions/attractions.csv",
        (
            "attraction_id",
            "attraction_name",
            "city",
            "address",
            "latitude",
            "longitude",
            "description",
            "rating",
            "opening_time",
            "closing_time",
            "closing_dates",
            "min_visit_hours",
            "max_visit_hours",
            "ticket_price",
            "attraction_type",
        ),
    ),
    "restaurants": (
        "restaurants/restaurants.csv",
        (
            "restaurant_id",
            "restaurant_name",
            "latitude",
            "longitude",
            "query_latitude",
            "query_longitude",
            "price_per_person",
            "cuisine",
            "opening_time",
            "closing_time",
            "nearby_attraction_name",
            "rating",
            "tags",
        ),
    ),
    "locations": (
        "locations/locations_coords.csv",
        ("poi_name", "latitude", "longitude", "poi_type"),
    ),
    "distances": (
        "transportation/distance_matrix.csv",
        ("origin", "destination", "distance_meters", "duration_minutes", "cost"),
    ),
}


def write_table(folder: Path, table: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Write the file of a table below ``folder``; the rows have its columns."""
    name, columns = FILES[table]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[column] for column in columns] for row in rows)
    write_whole(folder / name, text.getvalue())


def read_table(folder: Path, table: str) -> list[dict[str, str]]:
    """The rows of a table below ``folder``.

    Raises:
        InputError: the file is not there, is not UTF-8, or lacks a column.
    """
    name, columns = FILES[table]
    path = folder / name
    with border(str(path), "make the database again"), path.open(encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        found, rows = reader.fieldnames or (), list(reader)
    if missing := [column for column in columns if column not in found]:
        raise InputError(f"{path}: no column {missing[0]}; make the database again")
    return rows
