"""The two tools for the ways between cities: trains and flights, by route and segment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from opd_ray.deepplanning.travel.database import Database
from opd_ray.deepplanning.travel.tables import Cell, Row, Table
from opd_ray.deepplanning.travel.texts import Texts

_ASKED = {"origin": "origin_city", "destination": "destination_city", "depDate": "dep_date"}


def trains(database: Database, texts: Texts, asked: Mapping[str, Any]) -> str:
    """The answer of ``query_train_info``: a list of routes, each in a list of its own."""
    return _answer(database.table("trains"), texts, asked, _by_train)


def flights(database: Database, texts: Texts, asked: Mapping[str, Any]) -> str:
    """The answer of ``query_flight_info``: a list of routes."""
    return _answer(database.table("flights"), texts, asked, _by_plane)


def _answer(
    table: Table | None,
    texts: Texts,
    asked: Mapping[str, Any],
    said: Callable[[list[Row], Texts], Any],
) -> str:
    if table is None:
        return texts["no_info"]
    rows = _rows(table, asked)
    if not rows:
        # With three values, also where the text asks for four, as the official tools do it.
        return texts.say(
            "not_found", asked.get("origin"), asked.get("destination"), asked.get("depDate")
        )
    return json.dumps([said(route, texts) for route in _routes(rows)], ensure_ascii=False, indent=2)


def _by_train(route: list[Row], texts: Texts) -> list[dict[str, Any]]:
    said: dict[str, Any] = {}
    arrived: Any = None
    for number, row in enumerate(route, 1):
        # A later segment departs where the one before arrives, a city by its station's name.
        departs = arrived.split(texts["station_sep"])[0] if said else row["origin_city"]
        train = {"train_type": "marketingTransportName", "train_no": "marketingTransportNo"}
        said[texts.say("segment", number)] = _segment(row, texts, departs, train)
        arrived = row["arr_station_name"]
    return [said | {"price": _price(route)}]


def _by_plane(route: list[Row], texts: Texts) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for number, row in enumerate(route, 1):
        flight = {"airline": "marketingTransportName", "flight_no": "marketingTransportNo"}
        segment = _segment(row, texts, row["origin_city"], flight)
        segment["equipSize"] = row["equip_size"]
        segment["equipType"] = row["equip_type"]
        segment["manufacturer"] = row["manufacturer"]
        said[texts.say("segment", number)] = segment
    return said | {"price": _price(route)}


def _rows(table: Table, asked: Mapping[str, Any]) -> list[Row]:
    wanted = {column: asked.get(name) for name, column in _ASKED.items()}
    if asked.get("seatClassName"):
        wanted["seat_class"] = asked.get("seatClassName")
    return table.where(**wanted)


def _routes(rows: list[Row]) -> Iterator[list[Row]]:
    """The segments of every route, in their order; numbers sort as texts."""
    numbers: list[Any] = list(dict.fromkeys(row["route_index"] for row in rows))
    for number in sorted(numbers):
        yield _by_segment([row for row in rows if row["route_index"] == number])


def _by_segment(route: list[Row]) -> list[Row]:
    """Rows by their segment, those without one last.

    In the order of pandas' ``sort_values``: among more than 16 rows, equal ones change places.
    """
    known = [row for row in route if isinstance(row["segment_index"], str)]
    segments = np.array([row["segment_index"] for row in known], dtype=object)
    order = np.argsort(segments, kind="quicksort")
    unknown = [row for row in route if not isinstance(row["segment_index"], str)]
    return [known[number] for number in order] + unknown


def _segment(row: Row, texts: Texts, departs: Cell, names: Mapping[str, str]) -> dict[str, Any]:
    seats = row["seat_status"]
    if not isinstance(seats, str) or not seats.strip() or seats.lower() == "nan":
        seats = texts["sufficient"]
    return {
        "arrCityName": row["destination_city"],
        "arrStationCode": row["arr_station_code"],
        "arrStationName": row["arr_station_name"],
        "depCityName": departs,
        "depStationCode": row["dep_station_code"],
        "depStationName": row["dep_station_name"],
        "duration": int(row["duration"]),
        "arrDateTime": row["arr_datetime"],
        "depDateTime": row["dep_datetime"],
        **{said: row[column] for column, said in names.items()},
        "seatClassName": row["seat_class"],
        texts["remaining_seats"]: seats,
    }


def _price(route: list[Row]) -> float:
    """Of a route: what its first segment says; 0 where that is no number."""
    try:
        return float(route[0]["price"]) if route else 0
    except ValueError:
        return 0
