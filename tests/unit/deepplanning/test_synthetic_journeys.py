"""Trains and flights that constraints name are the only answers in the tables, by other code."""

from __future__ import annotations

import random
from typing import Any

import pytest
from synthetic_world import SEEDS, Row, best, task

from opd_ray.deepplanning.synthetic.journeys import journey_rows
from opd_ray.deepplanning.synthetic.places import Surveyor
from opd_ray.deepplanning.synthetic.stations import build_stations
from opd_ray.deepplanning.synthetic.timetable import Timetable
from opd_ray.deepplanning.synthetic.trip import Trip, read_trip

HOURS = {f"2025-11-{day} {hour:02}" for day in (12, 14) for hour in range(24)}


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
