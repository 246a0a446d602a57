"""Hotels, restaurants and attractions that constraints name are the only answers, by other code."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from synthetic_world import SEEDS, Row, best, task

from opd_ray.deepplanning.synthetic.attractions import attraction_row, build_attractions
from opd_ray.deepplanning.synthetic.hotels import build_hotels, hotel_row
from opd_ray.deepplanning.synthetic.places import Surveyor
from opd_ray.deepplanning.synthetic.restaurants import build_restaurants, restaurant_row
from opd_ray.deepplanning.synthetic.trip import read_trip

HOTEL = "Lavender Hotel (North Gate Branch)"
TABLE = "Old Wharf Kitchen (River Branch)"
# What each constraint says of a hotel and asks for, in words of this test: which rows are among
# the candidates, by what the best of them is the smallest.
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
# The same for restaurants near "Clear Lake"; the closest is measured below.
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
