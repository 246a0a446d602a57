"""The entities that constraints name are the only answers in the tables, seen by other code."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from opd_ray.deepplanning.synthetic.write import write_databases

Row = dict[str, str]
HOTEL = "Lavender Hotel (North Gate Branch)"
TABLE = "Old Wharf Kitchen (River Branch)"


def rows(folder: Path, name: str) -> list[Row]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def task(number: int, constraints: dict[str, Any], **other: Any) -> dict[str, Any]:
    meta = {
        "org": "Wuhan",
        "dest": ["Nanjing"],
        "days": 3,
        "depart_date": "2025-11-12",
        "return_date": "2025-11-14",
        "depart_weekday": 3,
        "people_number": 3,
        "room_number": 2,
        "hard_constraints": constraints,
    }
    return {"id": str(number), "query": "A trip, please.", "meta_info": meta | other}


# What each constraint on a journey asks for, in words of this test: the direction, which rows are
# among the candidates, by what the best of them is the smallest, and whether it must be direct.
JOURNEYS: dict[str, tuple[str, Any, Any, bool]] = {
    "train_cheapest_direct": ("out", None, lambda r: int(r["price"]), True),
    "train_cheapest_train_type": (
        "out",
        lambda r: r["train_type"] == "Bullet Train",
        lambda r: int(r["price"]),
        True,
    ),
    "train_earliest_departure_direct": ("out", None, lambda r: r["dep_datetime"], True),
    "train_latest_arrival_direct": (
        "back",
        None,
        lambda r: [-ord(c) for c in r["arr_datetime"]],
        True,
    ),
    "train_shortest_duration_direct": ("back", None, lambda r: int(r["duration"]), True),
    "train_departure_time_range": (
        "out",
        lambda r: "07:00:00" <= r["dep_datetime"][11:] <= "11:00:00",
        None,
        False,
    ),
    "train_seat_class": ("both", lambda r: r["seat_class"] == "First Class Seat", None, False),
    "train_seat_status": (
        "both",
        lambda r: r["seat_status"] == "" or int(r["seat_status"]) >= 3,
        None,
        False,
    ),
    "flight_cheapest_direct": ("out", None, lambda r: int(r["price"]), True),
    "flight_cheapest_airline_direct": (
        "out",
        lambda r: r["airline"] == "China Eastern Airlines",
        lambda r: int(r["price"]),
        True,
    ),
    "flight_earliest_airline_direct": (
        "out",
        lambda r: r["airline"] == "China Eastern Airlines",
        lambda r: r["dep_datetime"],
        True,
    ),
    "flight_cheapest_manufacturer_direct": (
        "out",
        lambda r: r["manufacturer"] == "Boeing",
        lambda r: int(r["price"]),
        True,
    ),
    "flight_earliest_departure_direct": ("out", None, lambda r: r["dep_datetime"], True),
    "flight_shortest_duration_direct": ("out", None, lambda r: int(r["duration"]), True),
    "flight_departure_time_range": (
        "out",
        lambda r: "16:00:00" <= r["dep_datetime"][11:] <= "20:00:00",
        None,
        False,
    ),
    "flight_arrival_time_range": (
        "back",
        lambda r: r["arr_datetime"][11:] >= "20:00:00",
        None,
        False,
    ),
    "flight_seat_class": ("both", lambda r: r["seat_class"] == "First Class", None, False),
    "flight_seat_status": (
        "both",
        lambda r: r["seat_status"] == "" or int(r["seat_status"]) >= 3,
        None,
        False,
    ),
}
SENTENCES = {
    "train_departure_time_range": "The train must leave between 7:00 AM and 11:00 AM.",
    "flight_departure_time_range": "It must depart between 16:00 and 20:00 in the afternoon.",
    "flight_arrival_time_range": "The flight must arrive between 8:00 PM and 12:00 AM",
    "flight_cheapest_manufacturer_direct": "the cheapest direct flight on a Boeing aircraft",
}
# The same for hotels.
HOTELS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "hotel_brand_highest_rated": (
        {"constraint_context": 'the highest-rated of the "如家" brand', "hotel_score": 4.6},
        lambda r: r["brand"] == "Home Inn",
        lambda r: -float(r["score"]),
    ),
    "hotel_cheapest_brand": (
        {"constraint_context": "the cheapest of the Atour brand hotels", "hotel_price": 357.0},
        lambda r: r["brand"] == "Atour Hotel",
        lambda r: int(r["price"]),
    ),
    "hotel_cheapest_star": (
        {"hotel_star": 5, "hotel_price": 307.0},
        lambda r: r["hotel_star"] == "5",
        lambda r: int(r["price"]),
    ),
    "hotel_star_highest_rated": (
        {"hotel_star": 2, "hotel_score": 4.7},
        lambda r: r["hotel_star"] == "2",
        lambda r: -float(r["score"]),
    ),
    "hotel_highest_rated": ({"hotel_score": 4.9}, None, lambda r: -float(r["score"])),
    "hotel_newest_decoration": (
        {"decoration_time": 2024, "year_threshold": 2023},
        lambda r: int(r["decoration_time"]) >= 2023,
        None,
    ),
    "hotel_price_range": (
        {"hotel_price": 358.0, "min_price": 330, "max_price": 360},
        lambda r: 330 <= int(r["price"]) <= 360,
        None,
    ),
    "hotel_star_service_required": (
        {"hotel_star": 3, "required_service": "Gym", "hotel_price": 275.0},
        lambda r: r["hotel_star"] == "3" and "Gym" in r["services"].split(";"),
        None,
    ),
}
# And for restaurants near "Clear Lake"; the closest is measured below.
EATERIES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "restaurant_cheapest_nearby_attraction": (
        {"price_per_person": 32.0},
        None,
        lambda r: int(r["price_per_person"]),
    ),
    "restaurant_highest_rated": (
        {"price_per_person": 90.0, "restaurant_rating": 4.2},
        None,
        lambda r: -float(r["rating"]),
    ),
    "restaurant_specific_cuisine_nearby": (
        {"constraint_context": "a meal near 'Clear Lake', of a halal restaurant"},
        lambda r: r["cuisine"] == "Halal Cuisine",
        None,
    ),
    "restaurant_specific_tag_nearby": (
        {"required_tag": "Private Room", "restaurant_rating": 2.4},
        lambda r: "Private Room" in r["tags"].split(";"),
        None,
    ),
    "restaurant_closest_to_attraction": (
        {"price_per_person": 681.0},
        None,
        lambda r: math.hypot(
            float(r["latitude"]) - float(r["query_latitude"]),
            0.85 * (float(r["longitude"]) - float(r["query_longitude"])),
        ),
    ),
}


def gold_numbers(kind: str) -> dict[str, str]:
    mode, number = ("train", "D1851") if kind.startswith("train") else ("flight", "MU5576")
    back = number[:-1] + "7"
    directions = {"out": ("outbound",), "back": ("inbound",), "both": ("outbound", "inbound")}
    ends = directions[JOURNEYS[kind][0]]
    return {f"{end}_{mode}_no": number if end == "outbound" else back for end in ends}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task for each constraint on journeys; the first ones have the others too."""
    tasks = []
    for number, kind in enumerate(JOURNEYS):
        seats = {"outbound_seat_status": "6", "inbound_seat_status": "7"}
        constraints: dict[str, Any] = {
            kind: gold_numbers(kind) | {"constraint_context": SENTENCES.get(kind, "")} | seats
        }
        for kinds, names in (
            (list(HOTELS), {"hotel_name": HOTEL}),
            (list(EATERIES), {"restaurant_name": TABLE, "attraction_name": "Clear Lake"}),
        ):
            if number < len(kinds):
                said = (HOTELS | EATERIES)[kinds[number]][0]
                constraints[kinds[number]] = names | said
        tasks.append(task(number, constraints))
    path = tmp_path_factory.mktemp("databases")
    write_databases(tasks, path, 3)
    return path


def best(candidates: list[Row], only: Any, rank: Any, name: str) -> list[str]:
    """The names of the best among the candidates; all of them where nothing ranks them."""
    among = [row for row in candidates if only is None or only(row)]
    if rank is None:
        return [row[name] for row in among]
    top = min(rank(row) for row in among)
    return [row[name] for row in among if rank(row) == top]


def directs(table: list[Row], origin: str) -> list[Row]:
    changing = {row["route_index"] for row in table if row["segment_index"] == "2"}
    return [r for r in table if r["origin_city"] == origin and r["route_index"] not in changing]


@pytest.mark.parametrize("number", range(len(JOURNEYS)))
def test_a_journey_that_is_asked_for_is_the_only_answer(folder: Path, number: int) -> None:
    kind = list(JOURNEYS)[number]
    direction, only, rank, direct = JOURNEYS[kind]
    mode = kind.split("_")[0]
    table = rows(folder / f"id_{number}", f"{mode}s/{mode}s.csv")
    for end, origin in (("outbound", "Wuhan"), ("inbound", "Nanjing")):
        gold = gold_numbers(kind).get(f"{end}_{mode}_no")
        if gold is None:
            continue
        leaving = [r for r in table if r["origin_city"] == origin and r["segment_index"] == "1"]
        candidates = directs(table, origin) if direct else leaving
        assert best(candidates, only, rank, f"{mode}_no") == [gold]
        assert len(directs(table, origin)) >= 5
        assert direction in ("both", "out" if origin == "Wuhan" else "back")


@pytest.mark.parametrize(
    "kind",
    [
        "train_cheapest_direct",
        "train_earliest_departure_direct",
        "flight_cheapest_direct",
        "flight_earliest_departure_direct",
    ],
)
def test_the_journey_with_a_change_would_win_if_it_counted(folder: Path, kind: str) -> None:
    _, only, rank, _ = JOURNEYS[kind]
    mode = kind.split("_")[0]
    table = rows(folder / f"id_{list(JOURNEYS).index(kind)}", f"{mode}s/{mode}s.csv")
    outbound = [r for r in table if r["origin_city"] == "Wuhan" and r["segment_index"] == "1"]
    (winner,) = best(outbound, only, rank, "route_index")
    assert winner in {row["route_index"] for row in table if row["segment_index"] == "2"}


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("train_cheapest_train_type", "price"),
        ("flight_cheapest_airline_direct", "price"),
        ("flight_cheapest_manufacturer_direct", "price"),
        ("flight_earliest_airline_direct", "dep_datetime"),
    ],
)
def test_another_type_airline_or_maker_has_a_better_one(
    folder: Path, kind: str, column: str
) -> None:
    _, only, rank, _ = JOURNEYS[kind]
    mode = kind.split("_")[0]
    table = rows(folder / f"id_{list(JOURNEYS).index(kind)}", f"{mode}s/{mode}s.csv")
    outbound = directs(table, "Wuhan")
    inside, outside = [r for r in outbound if only(r)], [r for r in outbound if not only(r)]
    assert len(inside) >= 2
    assert min(map(rank, outside)) < min(map(rank, inside))
    assert column in inside[0]


@pytest.mark.parametrize("number", range(len(HOTELS)))
def test_a_hotel_that_is_asked_for_is_the_only_answer(folder: Path, number: int) -> None:
    said, only, rank = list(HOTELS.values())[number]
    hotels = rows(folder / f"id_{number}", "hotels/hotels.csv")
    assert best(hotels, only, rank, "name") == [HOTEL]
    assert len(hotels) == 14
    gold = next(row for row in hotels if row["name"] == HOTEL)
    if "hotel_price" in said:
        assert gold["price"] == str(round(said["hotel_price"]))
    if only and rank:
        assert sum(map(only, hotels)) >= 2
        assert any(rank(row) < rank(gold) for row in hotels if not only(row))


def test_hotels_miss_a_service_or_a_star_but_not_both(folder: Path) -> None:
    number = list(HOTELS).index("hotel_star_service_required")
    hotels = rows(folder / f"id_{number}", "hotels/hotels.csv")
    met = {(r["hotel_star"] == "3", "Gym" in r["services"].split(";")) for r in hotels}
    assert {(True, False), (False, True)} < met


@pytest.mark.parametrize("number", range(len(EATERIES)))
def test_a_restaurant_that_is_asked_for_is_the_only_answer(folder: Path, number: int) -> None:
    _, only, rank = list(EATERIES.values())[number]
    places = rows(folder / f"id_{number}", "attractions/attractions.csv")
    lake = next(row for row in places if row["attraction_name"] == "Clear Lake")
    listed = [
        row
        for row in rows(folder / f"id_{number}", "restaurants/restaurants.csv")
        if (row["query_latitude"], row["query_longitude"]) == (lake["latitude"], lake["longitude"])
    ]
    assert best(listed, only, rank, "restaurant_name") == [TABLE]
    assert 5 <= len(listed) <= 8
    assert {row["nearby_attraction_name"] for row in listed} == {"Clear Lake"}


ATTRACTIONS: list[tuple[dict[str, Any], Any, Any, int]] = [
    (
        {
            "attraction_top_rated_must_visit": {
                "attraction_names": ["North Tower", "Clear Lake", "Silk Museum"],
                "attraction_ratings": [4.6, 4.5, 4.5],
            },
            "attraction_must_visit_named": {
                "attraction_names": ["Rose Garden", "Clear Lake"],
                "attraction_ratings": [4.9, 4.5],
            },
        },
        lambda r: float(r["rating"]) >= 4.5,
        {"North Tower", "Clear Lake", "Silk Museum"},
        2,
    ),
    (
        {
            "attraction_all_of_type": {
                "attraction_names": ["Clear Lake", "West Hill"],
                "attraction_type": "Natural Scenery",
                "attraction_ratings": [4.7, 4.4],
            }
        },
        lambda r: r["attraction_type"] == "Natural Scenery",
        {"Clear Lake", "West Hill"},
        0,
    ),
    (
        {
            "attraction_all_free_attractions": {
                "attraction_names": ["Clear Lake", "Old Bridge"],
                "attraction_ratings": [4.7, 4.7],
            }
        },
        lambda r: r["ticket_price"] == "0",
        {"Clear Lake", "Old Bridge"},
        0,
    ),
    (
        {
            "attraction_type_highest_rated": {
                "attraction_names": ["Clear Lake"],
                "attraction_type": "Natural Scenery",
                "attraction_ratings": [4.5],
            }
        },
        lambda r: r["attraction_type"] == "Natural Scenery" and float(r["rating"]) >= 4.5,
        {"Clear Lake"},
        1,
    ),
    (
        {
            "attraction_type_highest_rated": {
                "attraction_names": ["Clear Lake"],
                "attraction_type": "Natural Scenery",
                "attraction_ratings": [4.9],
            },
            "attraction_top_rated_must_visit": {
                "attraction_names": ["North Tower", "Old Bridge", "Silk Museum"],
                "attraction_ratings": [4.8, 4.8, 4.8],
            },
        },
        lambda r: r["attraction_type"] == "Natural Scenery" and float(r["rating"]) >= 4.7,
        {"Clear Lake"},
        1,
    ),
]


@pytest.mark.parametrize("number", range(len(ATTRACTIONS)))
def test_attractions_that_are_asked_for_are_the_only_answer(tmp_path: Path, number: int) -> None:
    constraints, only, names, _ = ATTRACTIONS[number]
    write_databases([task(7, constraints)], tmp_path, 11)
    attractions = rows(tmp_path / "id_7", "attractions/attractions.csv")
    assert {row["attraction_name"] for row in attractions if only(row)} == names
    assert len(attractions) == 20


def test_the_best_of_a_type_has_rivals_one_tenth_behind_and_better_ones_elsewhere(
    tmp_path: Path,
) -> None:
    write_databases([task(7, ATTRACTIONS[3][0])], tmp_path, 11)
    attractions = rows(tmp_path / "id_7", "attractions/attractions.csv")
    of_type = [r["rating"] for r in attractions if r["attraction_type"] == "Natural Scenery"]
    assert sorted(of_type)[-2:] == ["4.4", "4.5"]
    assert max(r["rating"] for r in attractions) > "4.5"
