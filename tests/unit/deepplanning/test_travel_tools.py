"""The nine travel tools: equal to the official ones to the byte, on a database of awkward cells."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from deepplanning_data import (
    CHECKOUT,
    TRAINS,
    cells,
    leg,
    needs_checkout,
    official_answers,
    write_checkout,
    write_database,
    write_without_optional_columns,
)

from opd_ray.deepplanning.checkout import MissingBenchmark
from opd_ray.deepplanning.travel.database import open_database
from opd_ray.deepplanning.travel.tools import travel_tools

# Arguments of every tool, and the columns in which something can be found for each.
ARGUMENTS = {
    "query_train_info": {
        "origin": "origin_city",
        "destination": "destination_city",
        "depDate": "dep_date",
        "seatClassName": "seat_class",
    },
    "query_flight_info": {
        "origin": "origin_city",
        "destination": "destination_city",
        "depDate": "dep_date",
        "seatClassName": "seat_class",
    },
    "query_hotel_info": {
        "destination": "city",
        "checkinDate": "dep_date",
        "checkoutDate": "dep_date",
        "hotelStar": "hotel_star",
        "hotelBrands": "brand",
    },
    "query_attraction_details": {"attraction_name": "attraction_name"},
    "recommend_attractions": {"city": "city", "attraction_type": "attraction_type"},
    "search_location": {"place_name": "poi_name"},
    "query_road_route_info": {"origin": "origin", "destination": "destination"},
    "recommend_restaurants": {"latitude": "query_latitude", "longitude": "query_longitude"},
    "query_restaurant_details": {"restaurant_name": "restaurant_name"},
}
JUNK: list[Any] = ["", " ", "nan", "NaN", "None", "NA", "{x}", "%s", "Å\n·", 0, 7, 1.5, None, True]
JUNK += [[], ["Hefei"], {}, {"a": 1}]


def random_calls(folder: str, count: int, seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Calls that mostly find something; some with arguments that are wrong, or not there."""
    draw = random.Random(seed)
    there = cells()
    calls = []
    for _ in range(count):
        name = draw.choice(list(ARGUMENTS))
        arguments: dict[str, Any] = {}
        for argument, column in ARGUMENTS[name].items():
            optional = argument in ("seatClassName", "hotelStar", "hotelBrands", "attraction_type")
            if draw.random() < (0.6 if optional else 0.02):
                continue
            wrong = draw.random() < 0.08
            arguments[argument] = draw.choice(JUNK if wrong else there[column])
        if draw.random() < 0.02:
            arguments["more"] = draw.choice(JUNK)
        calls.append((folder, name, arguments))
    return calls


@needs_checkout
def test_every_answer_is_the_official_one_to_the_byte(tmp_path: Path) -> None:
    folder = str(write_database(tmp_path / "databases" / "id_7"))
    # A trip that goes by train alone, files with a byte order mark, and Windows' line ends.
    other = write_database(tmp_path / "databases" / "id_8")
    (other / "flights" / "flights.csv").unlink()
    hotels = other / "hotels" / "hotels.csv"
    hotels.write_bytes(b"\xef\xbb\xbf" + hotels.read_bytes().replace(b"\n", b"\r\n"))
    third = write_database(tmp_path / "databases" / "id_9")
    (third / "trains" / "trains.csv").unlink()
    write_without_optional_columns(third)
    calls = random_calls(folder, 1500, 1)
    calls += random_calls(str(other), 300, 2) + random_calls(str(third), 300, 3)
    expected = official_answers(calls, tmp_path)
    tools = travel_tools(CHECKOUT)
    found = [tools.call(open_database(place), name, asked) for place, name, asked in calls]
    differ = [
        (call, theirs, ours)
        for call, theirs, ours in zip(calls, expected, found, strict=True)
        if theirs.encode() != ours.encode()
    ]
    assert differ == []
    # The calls have met what tools answer in every way.
    assert len(set(expected)) > 150
    for said in ('{"error"', "No train information", "missing 1 required", "NaN", "not in query"):
        assert sum(said in answer for answer in expected) >= 5, said
    for said in ("invalid literal", "no attribute 'split'", "cannot convert", "'<' not supported"):
        assert any(said in answer for answer in expected), said


@needs_checkout
def test_the_checkouts_schemas_are_the_tools(tmp_path: Path) -> None:
    tools = travel_tools(CHECKOUT)
    assert [schema["function"]["name"] for schema in tools.schemas] == [
        "query_train_info",
        "query_flight_info",
        "query_hotel_info",
        "query_attraction_details",
        "recommend_attractions",
        "search_location",
        "query_road_route_info",
        "recommend_restaurants",
        "query_restaurant_details",
    ]
    assert travel_tools(CHECKOUT) is tools
    for name, arguments in ARGUMENTS.items():
        schema = next(s["function"] for s in tools.schemas if s["function"]["name"] == name)
        assert set(schema["parameters"]["properties"]) == set(arguments)
    database = open_database(write_database(tmp_path / "id_1"))
    place = json.loads(tools.call(database, "search_location", {"place_name": "Laomendong"}))
    assert place == {"place_name": "Laomendong", "latitude": "32.0", "longitude": "118.0"}


def test_a_database_is_read_once_and_shared(tmp_path: Path) -> None:
    folder = write_database(tmp_path / "id_1")
    database = open_database(folder)
    assert open_database(str(folder)) is database
    assert open_database(folder / ".." / "id_1") is database


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: (f / "hotels/hotels.csv").unlink(), "hotels/hotels.csv: is not there"),
        (lambda f: (f / "hotels/hotels.csv").write_text(""), "hotels/hotels.csv: is empty"),
        (
            lambda f: (f / "hotels/hotels.csv").write_text("name,price,brand\n"),
            "no column 'hotel_star' (it has name, price, brand)",
        ),
        (lambda f: (f / "hotels/hotels.csv").write_text("a,b\n1,2\n3,4,5\n"), "line 3 has 3 cells"),
        (lambda f: (f / "hotels/hotels.csv").write_text('a,b\n1,"2\n'), "a quote in it is never"),
        (lambda f: (f / "hotels/hotels.csv").write_text("a,a\n1,2\n"), "the column 'a' twice"),
        (lambda f: (f / "hotels/hotels.csv").write_bytes(b"name\n\xff\n"), "UnicodeDecodeError"),
        (
            lambda f: (f / "hotels/hotels.csv").write_bytes(b"name\r\n1\r\n2\0\r\n"),
            "hotels/hotels.csv: line 3 has a NUL character",
        ),
        (
            lambda f: [(f / f"{n}/{n}.csv").unlink() for n in ("trains", "flights")],
            "trains/trains.csv: is not there",
        ),
    ],
)
def test_a_broken_database_is_named(tmp_path: Path, break_it: Any, said: str) -> None:
    folder = write_database(tmp_path / "id_1")
    break_it(folder)
    with pytest.raises(MissingBenchmark) as raised:
        open_database(folder)
    assert said in str(raised.value)
    assert str(folder) in str(raised.value)


def test_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingBenchmark, match=r"id_5: there is no such database; unpack"):
        open_database(tmp_path / "id_5")


def test_equal_segments_come_in_the_order_of_pandas(tmp_path: Path) -> None:
    folder = write_database(tmp_path / "id_1")
    # As pandas 3.1 sorts a column of texts (where pyarrow is not there to do it otherwise).
    lines = [f"{leg('0', '0')},High-speed,G{number}" for number in range(17)]
    lines.insert(5, leg("0", "") + ",High-speed,last")
    (folder / "trains/trains.csv").write_text("\n".join([TRAINS[0], *lines]) + "\n")
    answer = travel_tools(write_checkout(tmp_path / "c")).call(
        open_database(folder),
        "query_train_info",
        {"origin": "Hefei", "destination": "Nanjing", "depDate": "2025-11-12"},
    )
    segments = [value for value in json.loads(answer)[0][0].values() if isinstance(value, dict)]
    order = [0, 14, 13, 12, 11, 10, 9, 15, 8, 6, 5, 4, 3, 2, 1, 7, 16]
    assert [segment["marketingTransportNo"] for segment in segments] == [
        *(f"G{number}" for number in order),
        "last",
    ]


@pytest.mark.parametrize("depth", [400, 900])
def test_arguments_nested_deeply_get_an_answer(tmp_path: Path, depth: int) -> None:
    database = open_database(write_database(tmp_path / "id_1"))
    tools = travel_tools(write_checkout(tmp_path / "c"))
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        deep = json.loads(opened * depth + "1" + closed * depth)
        answer = tools.call(database, "search_location", {"place_name": deep})
        assert json.loads(answer) == {"error": "the arguments are nested too deeply"}
