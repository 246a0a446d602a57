"""Gold plans: their lines, their costs, and the rules of a feasible one, checked by other code."""

from __future__ import annotations

import csv
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from opd_ray.deepplanning.synthetic.day import Layout, meal, sight
from opd_ray.deepplanning.synthetic.gold_plan import gold_plan
from opd_ray.deepplanning.synthetic.map import TaskMap, Ticket, Visit
from opd_ray.deepplanning.synthetic.places import Road
from opd_ray.deepplanning.synthetic.plan import Activity, Day, Plan, drive, ride
from opd_ray.deepplanning.synthetic.write import write_databases
from opd_ray.deepplanning.travel.plan import read_plan
from opd_ray.errors import InputError

TASKS: list[dict[str, Any]] = [
    {
        "id": "3",
        "meta_info": {
            "org": "Wuhan",
            "dest": ["Nanjing"],
            "days": 2,
            "depart_date": "2025-11-12",
            "return_date": "2025-11-13",
            "depart_weekday": 3,
            "people_number": 1,
            "room_number": 1,
            "hard_constraints": {
                "train_latest_arrival_direct": {"inbound_train_no": "G3757"},
                "hotel_price_range": {
                    "hotel_name": "Home Inn - Harbour Square Branch",
                    "hotel_price": 265.0,
                    "min_price": 240,
                    "max_price": 290,
                },
                "attraction_must_visit_named": {
                    "attraction_names": ["Clear Lake", "Knife, Scissors, and Sword Museum"],
                    "attraction_ratings": [4.8, 4.5],
                },
                "restaurant_highest_rated": {
                    "attraction_name": "Clear Lake",
                    "restaurant_name": "Old Wharf Kitchen (River Branch)",
                    "price_per_person": 83.0,
                    "restaurant_rating": 4.8,
                },
                "budget_constraint": {"max_budget": 2000},
            },
        },
    },
    {
        "id": "8",
        "meta_info": {
            "org": "Urumqi",
            "dest": ["Shanghai"],
            "days": 4,
            "depart_date": "2025-11-16",
            "return_date": "2025-11-19",
            "depart_weekday": 7,
            "people_number": 5,
            "room_number": 3,
            "hard_constraints": {
                "flight_departure_time_range": {
                    "outbound_flight_no": "CZ3783",
                    "constraint_context": "It must leave between 2:00 PM and 6:00 PM",
                },
                "hotel_highest_rated": {"hotel_name": "Grand River Hotel", "hotel_score": 5.0},
            },
        },
    },
]
Rows = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planned")
    write_databases(TASKS, path, 1)
    return path


def by_name(folder: Path, task: str, name: str, column: str) -> Rows:
    with (folder / f"id_{task}" / name).open(encoding="utf-8", newline="") as file:
        return {row[column]: row for row in csv.DictReader(file)}


def minutes(slot: str) -> tuple[int, int]:
    start, end = (int(clock[:2]) * 60 + int(clock[3:]) for clock in slot.split("-"))
    return start, end


@pytest.mark.parametrize("task", TASKS, ids=["train", "flight"])
def test_a_gold_plan_has_no_gap_and_keeps_hours_prices_and_ways(
    folder: Path, task: dict[str, Any]
) -> None:
    meta, plan = task["meta_info"], gold_plan(task, folder).json()
    attractions = by_name(folder, task["id"], "attractions/attractions.csv", "attraction_name")
    restaurants = by_name(folder, task["id"], "restaurants/restaurants.csv", "restaurant_name")
    places = by_name(folder, task["id"], "locations/locations_coords.csv", "poi_name")
    matrix_file = folder / f"id_{task['id']}" / "transportation/distance_matrix.csv"
    with matrix_file.open(encoding="utf-8", newline="") as file:
        matrix = {(row["origin"], row["destination"]): row for row in csv.DictReader(file)}
    seen: list[str] = []
    assert [day["day_number"] for day in plan["daily_plans"]] == list(range(1, meta["days"] + 1))
    for number, day in enumerate(plan["daily_plans"]):
        slots = [minutes(act["time_slot"]) for act in day["activities"]]
        assert all(before[1] == after[0] for before, after in pairwise(slots))
        assert all(start < end for start, end in slots)
        here = None
        for act, (start, end) in zip(day["activities"], slots, strict=True):
            details = act["details"]
            if act["type"].startswith("travel"):
                assert here in (None, details["from"])
                here = details["to"]
            elif act["type"] != "buffer":
                assert here == details["name"]
            if act["type"] == "travel_city":
                ends = (places[details["from"]], places[details["to"]])
                way = matrix[*(f"{p['latitude']},{p['longitude']}" for p in ends)]
                assert end - start == int(way["duration_minutes"])
                assert details["cost"] == int(way["cost"])
            if act["type"] == "attraction":
                row = attractions[details["name"]]
                assert details["cost"] == int(row["ticket_price"])
                least, most = float(row["min_visit_hours"]), float(row["max_visit_hours"])
                assert 60 * least <= end - start <= 60 * most
                weekdays = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
                today = [*weekdays, "Sunday"][(meta["depart_weekday"] - 1 + number) % 7]
                assert today not in row["closing_dates"]
                if ":" in row["opening_time"]:
                    opens, closes = minutes(f"{row['opening_time']}-{row['closing_time']}")
                    assert opens <= start < end <= closes
            if act["type"] == "meal":
                row = restaurants[details["name"]]
                opens, closes = minutes(f"{row['opening_time']}-{row['closing_time']}")
                assert opens <= start < end <= (closes if closes > opens else 1440)
                assert details["cost"] == int(row["price_per_person"])
                assert details["meal_type"] == ("lunch" if start < 900 else "dinner")
            if act["type"] in ("meal", "attraction"):
                seen.append(details["name"])
        kinds = [act["type"] for act in day["activities"]]
        last = number == meta["days"] - 1
        assert kinds[-1] == ("travel_intercity_public" if last else "hotel")
        assert ("accommodation" in day) == (not last)
        if 0 < number < meta["days"] - 1:
            assert kinds.count("meal") == 2
            assert kinds.count("attraction") >= 2
    assert len(seen) == len(set(seen))


def test_a_gold_plan_has_what_is_asked_for_within_the_budget(folder: Path) -> None:
    plan = gold_plan(TASKS[0], folder)
    text = plan.text()
    for name in (
        "train G3757, Nanjing",
        "Accommodation: Home Inn - Harbour Square Branch, ¥265/room/night",
        "| attraction | Clear Lake, ¥",
        "| attraction | Knife, Scissors, and Sword Museum, ¥",
        "Old Wharf Kitchen (River Branch), ¥83/person",
    ):
        assert name in text
    assert plan.costs().total <= 2000
    flight = gold_plan(TASKS[1], folder).json()["daily_plans"][0]["activities"][0]
    assert flight["details"]["number"] == "CZ3783"
    assert flight["time_slot"] >= "14:00"


@pytest.mark.parametrize("task", TASKS, ids=["train", "flight"])
def test_the_lines_are_read_back_as_the_json(folder: Path, task: dict[str, Any]) -> None:
    plan = gold_plan(task, folder)
    read = read_plan(plan.text())
    assert read.problems == []
    assert read.as_json == plan.json()


def test_attractions_are_visited_on_days_when_they_are_open(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "id_3", tmp_path / "id_3")
    file = tmp_path / "id_3" / "attractions/attractions.csv"
    with file.open(encoding="utf-8", newline="") as opened:
        table = list(csv.DictReader(opened))
    closed = {"Clear Lake": "Monday,Wednesday", "Knife, Scissors, and Sword Museum": "Thursday"}
    for row in table:
        row["closing_dates"] = closed.get(row["attraction_name"], "No closing day")
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, table[0])
        writer.writeheader()
        writer.writerows(table)
    wednesday, thursday = gold_plan(TASKS[0], tmp_path).json()["daily_plans"]
    visited = [
        {act["details"]["name"] for act in day["activities"] if act["type"] == "attraction"}
        for day in (wednesday, thursday)
    ]
    assert "Clear Lake" in visited[1] - visited[0]
    assert "Knife, Scissors, and Sword Museum" in visited[0] - visited[1]


def test_a_restaurant_that_closes_after_midnight_is_open_until_the_day_ends(folder: Path) -> None:
    task_map = TaskMap(folder / "id_3")
    listed = by_name(folder, "3", "restaurants/restaurants.csv", "restaurant_name")
    late = [name for name, row in listed.items() if row["closing_time"] == "02:00"]
    assert late
    assert {task_map.restaurants[name].closes for name in late} == {1439}


def test_without_a_plan_within_the_budget_the_task_is_named(folder: Path) -> None:
    meta = TASKS[0]["meta_info"]
    poor = meta["hard_constraints"] | {"budget_constraint": {"max_budget": 300}}
    task = TASKS[0] | {"meta_info": meta | {"hard_constraints": poor}}
    with pytest.raises(InputError, match="task 3: no plan found in .*id_3; make the database"):
        gold_plan(task, folder)


def test_a_missing_table_and_an_unknown_hotel_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"locations_coords\.csv: .*; make the database again"):
        gold_plan(TASKS[0], tmp_path)
    meta = TASKS[0]["meta_info"]
    other = {"hotel_highest_rated": {"hotel_name": "Nowhere Inn"}}
    task = TASKS[0] | {"meta_info": meta | {"hard_constraints": other}}
    with pytest.raises(InputError, match="task 3: no hotel 'Nowhere Inn'"):
        gold_plan(task, folder)


TEXT = """<plan>
Day 1:
Current City: from Wuhan to Nanjing
Accommodation: Inn - By the River, ¥200/room/night
08:00-11:00 | travel_intercity_public | train G1, Wuhan Station - Nanjing Station, ¥150/person
11:00-11:15 | buffer | Getting off
11:15-11:40 | travel_city | Nanjing Station - Inn - By the River, 9.6km, 25min, ¥23
11:40-12:40 | meal | Lunch, Wharf, ¥50/person
12:40-14:10 | attraction | Clear Lake, ¥30/person
14:10-24:00 | hotel | Rest, Inn - By the River

Day 2:
Current City: from Nanjing to Wuhan
Accommodation: -
18:00-21:00 | travel_intercity_public | train G2, Nanjing Station - Wuhan Station, ¥140/person

**Budget Summary**:
   **Transportation: 1496 RMB**
   **Accommodation: 600 RMB**
   **Meals: 250 RMB**
   **Attractions & Tickets: 150 RMB**
   **Total Estimated Budget: 2496 RMB**

</plan>
"""


def small_plan() -> Plan:
    inn, station = "Inn - By the River", "Nanjing Station"
    out = Ticket("train", "G1", "Wuhan Station", station, 480, 660, 150, 9)
    home = Ticket("train", "G2", station, "Wuhan Station", 1080, 1260, 140, 9)
    first = Day(1, "from Wuhan to Nanjing", inn, 200)
    first.activities += [
        ride(out),
        Activity(660, 675, "buffer", {"description": "Getting off"}),
        drive(675, station, inn, Road(9640, 25, 23)),
        Activity(700, 760, "meal", {"meal_type": "lunch", "name": "Wharf", "cost": 50}),
        Activity(760, 850, "attraction", {"name": "Clear Lake", "city": "Nanjing", "cost": 30}),
        Activity(850, 1440, "hotel", {"activity": "Rest", "name": inn}),
    ]
    second = Day(2, "from Nanjing to Wuhan", None, 0, [ride(home)])
    return Plan([first, second], people=5, rooms=3)


def test_a_plan_in_the_prescribed_lines() -> None:
    # Five people pay (150 + 140) * 5 and two cars 23 each: 1496; three rooms one night: 600.
    assert small_plan().text() == TEXT


def test_a_plan_as_the_evaluator_reads_it() -> None:
    plan = small_plan().json()
    assert plan["budget_summary"] == {
        "transportation": 1496,
        "accommodation": 600,
        "meals": 250,
        "attractions_and_tickets": 150,
        "total_estimated_budget": 2496,
        "currency": "CNY",
    }
    first, second = plan["daily_plans"]
    assert first["accommodation"] == {"name": "Inn - By the River", "price_per_night": 200}
    assert first["activities"][2] == {
        "time_slot": "11:15-11:40",
        "type": "travel_city",
        "details": {
            "from": "Nanjing Station",
            "to": "Inn - By the River",
            "distance": "9.6km",
            "duration": "25min",
            "cost": 23,
        },
    }
    assert "accommodation" not in second
    assert second["activities"][0]["details"] == {
        "mode": "train",
        "number": "G2",
        "from": "Nanjing Station",
        "to": "Wuhan Station",
        "cost": 140,
    }


def test_a_day_waits_for_meals_at_what_is_open_and_refuses_what_is_too_late(folder: Path) -> None:
    task_map = TaskMap(folder / "id_3")
    names = list(task_map.attractions)
    lunch = Visit(next(iter(task_map.restaurants)), 40, 600, 1260, 60, 90)
    layout = Layout(task_map, "Nanjing", 480, names[0])
    assert layout.stop(sight(Visit(names[1], 0, 480, 600, 60, 120)))
    assert not layout.stop(sight(Visit(names[2], 0, 0, 500, 60, 120)))
    assert layout.stop(meal(lunch, "Lunch"))
    kinds = [(act.type, act.start, act.end) for act in layout.activities]
    way = task_map.road(names[0], names[1]).minutes
    back = task_map.road(names[1], lunch.name).minutes
    # The visit lasts until its longest (120) or closing time (600), the rest is a buffer.
    assert kinds == [
        ("travel_city", 480, 480 + way),
        ("attraction", 480 + way, 600),
        ("buffer", 600, 660 - back),
        ("travel_city", 660 - back, 660),
        ("meal", 660, 720),
    ]
