"""The entities that constraints name are the only answers in the tables, seen by other code."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from opd_ray.deepplanning.synthetic.attractions import attraction_row, build_attractions
from opd_ray.deepplanning.synthetic.hotels import build_hotels, hotel_row
from opd_ray.deepplanning.synthetic.journeys import journey_rows
from opd_ray.deepplanning.synthetic.places import Surveyor
from opd_ray.deepplanning.synthetic.restaurants import build_restaurants, restaurant_row
from opd_ray.deepplanning.synthetic.stations import build_stations
from opd_ray.deepplanning.synthetic.timetable import Timetable
from opd_ray.deepplanning.synthetic.trip import Trip, read_trip

SEEDS = range(30)
HOURS = {f"2025-11-{day} {hour:02}" for day in (12, 14) for hour in range(24)}
Row = dict[str, str]
HOTEL = "Lavender Hotel (North Gate Branch)"
TABLE = "Old Wharf Kitchen (River Branch)"


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
        {"decoration_time": 2024, "year_threshold": 2019},
        lambda r: int(r["decoration_time"]) >= 2019,
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


def trip_for(kind: str, number: str = "") -> Trip:
    """A trip that asks for one thing on a journey."""
    seats = {"outbound_seat_status": "6", "inbound_seat_status": "7"}
    numbers = gold_numbers(kind) if not number else {"outbound_train_no": number}
    said = numbers | {"constraint_context": SENTENCES.get(kind, "")} | seats
    return read_trip(task(1, {kind: said}))


def journeys(trip: Trip, mode: str, seed: int) -> list[Row]:
    """The rows of both days, as they would be written."""
    rng = random.Random(seed)
    surveyor = Surveyor(rng)
    start, end, change = (build_stations(c, surveyor) for c in ("Wuhan", "Nanjing", "Hefei"))
    found: list[Row] = []
    for one, other, date in ((start, end, trip.departs), (end, start, trip.returns)):
        for journey in Timetable(trip, mode, one, other, rng).build(change):
            found += journey_rows(journey, one.city, other.city, date, len(found))
    return found


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


@pytest.mark.parametrize("kind", JOURNEYS)
def test_a_journey_that_is_asked_for_is_the_only_answer(kind: str) -> None:
    direction, only, rank, direct = JOURNEYS[kind]
    mode, trip = kind.split("_")[0], trip_for(kind)
    asked = {"out": ["Wuhan"], "back": ["Nanjing"], "both": ["Wuhan", "Nanjing"]}[direction]
    for seed in SEEDS:
        table = journeys(trip, mode, seed)
        for origin in asked:
            gold = gold_numbers(kind)[f"{'outbound' if origin == 'Wuhan' else 'inbound'}_{mode}_no"]
            leaving = [r for r in table if r["origin_city"] == origin and r["segment_index"] == "1"]
            candidates = directs(table, origin) if direct else leaving
            assert best(candidates, only, rank, f"{mode}_no") == [gold], seed
            assert len(directs(table, origin)) >= 5
            assert all(row["dep_datetime"] < row["arr_datetime"] for row in table)
            assert {row["arr_datetime"][:13] for row in table} <= HOURS


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("train_cheapest_direct", ""),
        ("train_cheapest_direct", "K336"),
        ("train_earliest_departure_direct", ""),
        ("flight_cheapest_direct", ""),
        ("flight_earliest_departure_direct", ""),
    ],
)
def test_the_journey_with_a_change_would_win_if_it_counted(kind: str, number: str) -> None:
    _, only, rank, _ = JOURNEYS[kind]
    mode, trip = kind.split("_")[0], trip_for(kind, number)
    for seed in SEEDS:
        table = journeys(trip, mode, seed)
        outbound = [r for r in table if r["origin_city"] == "Wuhan" and r["segment_index"] == "1"]
        (winner,) = best(outbound, only, rank, "route_index")
        assert winner in {row["route_index"] for row in table if row["segment_index"] == "2"}
        gold = number or gold_numbers(kind)[f"outbound_{mode}_no"]
        assert best(directs(table, "Wuhan"), only, rank, f"{mode}_no") == [gold]


@pytest.mark.parametrize(
    "kind",
    [
        "train_cheapest_train_type",
        "flight_cheapest_airline_direct",
        "flight_cheapest_manufacturer_direct",
        "flight_earliest_airline_direct",
    ],
)
def test_another_type_airline_or_maker_has_a_better_one(kind: str) -> None:
    _, only, rank, _ = JOURNEYS[kind]
    mode, trip = kind.split("_")[0], trip_for(kind)
    for seed in SEEDS:
        outbound = directs(journeys(trip, mode, seed), "Wuhan")
        inside, outside = [r for r in outbound if only(r)], [r for r in outbound if not only(r)]
        assert len(inside) >= 2
        assert min(map(rank, outside)) < min(map(rank, inside))


def hotels_for(kind: str, seed: int) -> list[Row]:
    trip = read_trip(task(1, {kind: {"hotel_name": HOTEL} | HOTELS[kind][0]}))
    rng = random.Random(seed)
    return [hotel_row(hotel, "Nanjing") for hotel in build_hotels(trip, Surveyor(rng), rng)]


@pytest.mark.parametrize("kind", HOTELS)
def test_a_hotel_that_is_asked_for_is_the_only_answer(kind: str) -> None:
    said, only, rank = HOTELS[kind]
    for seed in SEEDS:
        hotels = hotels_for(kind, seed)
        assert best(hotels, only, rank, "name") == [HOTEL], seed
        assert len({row["name"] for row in hotels}) == 14
        gold = next(row for row in hotels if row["name"] == HOTEL)
        if "hotel_price" in said:
            assert gold["price"] == str(round(said["hotel_price"]))
        if only and rank:
            assert sum(map(only, hotels)) >= 4
            assert any(rank(row) < rank(gold) for row in hotels if not only(row))


def test_hotels_miss_narrowly() -> None:
    for seed in SEEDS:
        hotels = hotels_for("hotel_star_service_required", seed)
        met = {(r["hotel_star"] == "3", "Gym" in r["services"].split(";")) for r in hotels}
        assert {(True, False), (False, True)} < met
        scores = sorted(row["score"] for row in hotels_for("hotel_highest_rated", seed))
        assert scores[-2:] == ["4.8", "4.9"]
        years = [row["decoration_time"] for row in hotels_for("hotel_newest_decoration", seed)]
        assert sorted(years)[-2:] == ["2018", "2024"]
        prices = {row["price"] for row in hotels_for("hotel_price_range", seed)}
        assert {"325", "365"} < prices


@pytest.mark.parametrize("kind", EATERIES)
def test_a_restaurant_that_is_asked_for_is_the_only_answer(kind: str) -> None:
    said, only, rank = EATERIES[kind]
    names = {"restaurant_name": TABLE, "attraction_name": "Clear Lake"}
    trip = read_trip(task(1, {kind: names | said}))
    for seed in range(12):
        rng = random.Random(seed)
        surveyor = Surveyor(rng)
        attractions = build_attractions(trip, surveyor, rng)
        listings = build_restaurants(trip, attractions, surveyor, rng)
        table = [restaurant_row(listing, 1) for listing in listings]
        listed = [row for row in table if row["nearby_attraction_name"] == "Clear Lake"]
        assert best(listed, only, rank, "restaurant_name") == [TABLE], seed
        assert 5 <= len(listed) <= 8


def test_two_that_are_asked_for_near_one_attraction_do_not_spoil_each_other() -> None:
    near = {"attraction_name": "Clear Lake"}
    wishes = {
        "restaurant_highest_rated": near | {"restaurant_name": "Best", "restaurant_rating": 4.2},
        "restaurant_cheapest_nearby_attraction": near
        | {"restaurant_name": "Cheapest", "price_per_person": 60.0, "restaurant_rating": 4.6},
        "restaurant_specific_tag_nearby": near
        | {"restaurant_name": "Quiet", "required_tag": "Private Room", "price_per_person": 20.0},
    }
    trip = read_trip(task(1, wishes))
    for seed in range(12):
        rng = random.Random(seed)
        surveyor = Surveyor(rng)
        attractions = build_attractions(trip, surveyor, rng)
        listings = build_restaurants(trip, attractions, surveyor, rng)
        rows = [restaurant_row(listing, 1) for listing in listings]
        listed = [row for row in rows if row["nearby_attraction_name"] == "Clear Lake"]
        by_rating = sorted(listed, key=lambda row: float(row["rating"]))
        assert by_rating[-1]["restaurant_name"] == "Best"
        assert by_rating[-1]["rating"] == "4.2" > by_rating[-2]["rating"]
        by_price = sorted(listed, key=lambda row: int(row["price_per_person"]))
        assert by_price[0]["restaurant_name"] == "Cheapest"
        assert by_price[0]["price_per_person"] == "60" != by_price[1]["price_per_person"]
        quiet = [row["restaurant_name"] for row in listed if "Private Room" in row["tags"]]
        assert quiet == ["Quiet"]


ATTRACTIONS: list[tuple[dict[str, Any], Any, set[str]]] = [
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
    ),
]


def attractions_for(number: int, seed: int) -> list[Row]:
    trip = read_trip(task(1, ATTRACTIONS[number][0]))
    rng = random.Random(seed)
    built = build_attractions(trip, Surveyor(rng), rng)
    return [attraction_row(attraction, "Nanjing", 1) for attraction in built]


@pytest.mark.parametrize("number", range(len(ATTRACTIONS)))
def test_attractions_that_are_asked_for_are_the_only_answer(number: int) -> None:
    _, only, names = ATTRACTIONS[number]
    for seed in SEEDS:
        attractions = attractions_for(number, seed)
        assert {row["attraction_name"] for row in attractions if only(row)} == names, seed
        assert len({row["attraction_name"] for row in attractions}) == 20


def test_the_best_of_a_type_has_rivals_one_tenth_behind_and_better_ones_elsewhere() -> None:
    for seed in SEEDS:
        attractions = attractions_for(3, seed)
        of_type = [r["rating"] for r in attractions if r["attraction_type"] == "Natural Scenery"]
        assert sorted(of_type)[-1] == "4.5"
        assert len(of_type) >= 5
        assert max(r["rating"] for r in attractions) > "4.5"
