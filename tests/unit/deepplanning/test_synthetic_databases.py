"""In the databases of all tasks of the benchmark the only answer is what a constraint names."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from deepplanning_data import needs_checkout
from synthetic_world import AllTasks

pytestmark = needs_checkout

Task = dict[str, Any]


def clocks(sentence: str) -> list[str]:
    """The two times of "between 6:00 AM and 13:00" as HH:MM:SS, read by the standard library."""
    found = []
    for part in sentence.split("between ")[1].split(" and "):
        word = re.sub(r"( in the afternoon)?\.?$", "", part)
        form = "%I:%M %p" if word.endswith("M") else "%H:%M"
        found.append(datetime.strptime(word, form).strftime("%H:%M:%S"))
    return [found[0], "24" if found[1] == "00:00:00" else found[1]]


def answers(all_tasks: AllTasks, task: Task, kind: str) -> tuple[set[str], set[str]]:
    """The names of the entities that meet a constraint in the tables, and those that it names."""
    number, meta = task["id"], task["meta_info"]
    asked = meta["hard_constraints"][kind]
    group = kind.split("_")[0]
    if group in ("train", "flight"):
        return journeys(all_tasks, task, kind)
    if group == "hotel":
        rows = all_tasks.table(number, "hotels/hotels.csv")
        gold = next(row for row in rows if row["name"] == asked["hotel_name"])
        if "brand" in kind:
            rows = [row for row in rows if row["brand"] == gold["brand"]]
        if "star" in kind:
            rows = [row for row in rows if row["hotel_star"] == str(asked["hotel_star"])]
        if kind.endswith("highest_rated"):
            rows = [r for r in rows if float(r["score"]) >= max(float(r["score"]) for r in rows)]
        elif "cheapest" in kind:
            rows = [row for row in rows if int(row["price"]) <= min(int(r["price"]) for r in rows)]
        elif kind == "hotel_price_range":
            low, high = asked["min_price"], asked["max_price"]
            rows = [row for row in rows if low <= int(row["price"]) <= high]
        elif kind == "hotel_newest_decoration":
            rows = [r for r in rows if int(r["decoration_time"]) >= asked["year_threshold"]]
        else:
            service = asked["required_service"]
            rows = [row for row in rows if service in row["services"].split(";")]
        return {row["name"] for row in rows}, {asked["hotel_name"]}
    if group == "attraction":
        rows = all_tasks.table(number, "attractions/attractions.csv")
        names = set(asked["attraction_names"])
        if "type" in kind:
            rows = [row for row in rows if row["attraction_type"] == asked["attraction_type"]]
        if kind.endswith("highest_rated"):
            rows = [r for r in rows if float(r["rating"]) >= max(float(r["rating"]) for r in rows)]
        elif kind == "attraction_top_rated_must_visit":
            third = sorted((float(row["rating"]) for row in rows), reverse=True)[2]
            rows = [row for row in rows if float(row["rating"]) >= third]
        elif kind == "attraction_all_free_attractions":
            rows = [row for row in rows if row["ticket_price"] == "0"]
        elif kind == "attraction_must_visit_named":
            rows = [row for row in rows if row["attraction_name"] in names]
        return {row["attraction_name"] for row in rows}, names
    rows = all_tasks.table(number, "restaurants/restaurants.csv")
    name = asked["restaurant_name"]
    if kind == "restaurant_must_eat_named":
        return {r["restaurant_name"] for r in rows if r["restaurant_name"] == name}, {name}
    rows = [row for row in rows if row["nearby_attraction_name"] == asked["attraction_name"]]
    gold = next(row for row in rows if row["restaurant_name"] == name)
    if kind == "restaurant_cheapest_nearby_attraction":
        least = min(int(row["price_per_person"]) for row in rows)
        rows = [row for row in rows if int(row["price_per_person"]) == least]
    elif kind == "restaurant_highest_rated":
        rows = [r for r in rows if float(r["rating"]) >= max(float(r["rating"]) for r in rows)]
    elif kind == "restaurant_specific_cuisine_nearby":
        rows = [row for row in rows if row["cuisine"] == gold["cuisine"]]
    elif kind == "restaurant_specific_tag_nearby":
        tag = asked.get("required_tag", "Waiting Area")
        rows = [row for row in rows if tag in row["tags"].split(";")]
    else:
        ways = {
            (way["origin"], way["destination"]): int(way["distance_meters"])
            for way in all_tasks.table(number, "transportation/distance_matrix.csv")
        }

        def far(row: dict[str, str]) -> int:
            start = f"{row['query_latitude']},{row['query_longitude']}"
            return ways[start, f"{row['latitude']},{row['longitude']}"]

        rows = [row for row in rows if far(row) == min(map(far, rows))]
    return {row["restaurant_name"] for row in rows}, {name}


def journeys(all_tasks: AllTasks, task: Task, kind: str) -> tuple[set[str], set[str]]:
    number, meta = task["id"], task["meta_info"]
    asked, mode = meta["hard_constraints"][kind], kind.split("_")[0]
    table = all_tasks.table(number, f"{mode}s/{mode}s.csv")
    found: set[str] = set()
    names: set[str] = set()
    for end, origin in (("outbound", meta["org"]), ("inbound", meta["dest"][0])):
        gold_number = asked.get(f"{end}_{mode}_no")
        if not gold_number:
            continue
        names.add(gold_number)
        rows = [row for row in table if row["origin_city"] == origin]
        last = {row["route_index"]: row["arr_datetime"] for row in rows}
        changing = {row["route_index"] for row in rows if row["segment_index"] == "2"}
        rows = [row for row in rows if row["segment_index"] == "1"]
        gold = next(row for row in rows if row[f"{mode}_no"] == gold_number)
        if kind.endswith("direct") or kind.endswith("train_type"):
            rows = [row for row in rows if row["route_index"] not in changing]
        for word, column in (
            ("airline", "airline"),
            ("manufacturer", "manufacturer"),
            ("train_type", "train_type"),
            ("seat_class", "seat_class"),
        ):
            if word in kind:
                rows = [row for row in rows if row[column] == gold[column]]
        if "cheapest" in kind:
            rows = [row for row in rows if int(row["price"]) <= min(int(r["price"]) for r in rows)]
        elif "earliest" in kind:
            rows = [r for r in rows if r["dep_datetime"] <= min(x["dep_datetime"] for x in rows)]
        elif "latest" in kind:
            rows = [r for r in rows if r["arr_datetime"] >= max(x["arr_datetime"] for x in rows)]
        elif "shortest" in kind:
            rows = [r for r in rows if int(r["duration"]) <= min(int(x["duration"]) for x in rows)]
        elif "seat_status" in kind:
            people = meta["people_number"]
            rows = [r for r in rows if r["seat_status"] == "" or int(r["seat_status"]) >= people]
        elif "time_range" in kind:
            low, high = clocks(asked["constraint_context"])
            departing = "departure" in kind
            moments = {r["route_index"]: r["dep_datetime"] for r in rows} if departing else last
            rows = [r for r in rows if low <= moments[r["route_index"]][11:] <= high]
        found |= {row[f"{mode}_no"] for row in rows}
    return found, names


def test_what_constraints_name_is_the_only_answer_in_every_database(all_tasks: AllTasks) -> None:
    checked = 0
    for task in all_tasks.tasks:
        for kind in task["meta_info"]["hard_constraints"]:
            if kind != "budget_constraint":
                found, named = answers(all_tasks, task, kind)
                assert found == named, (task["id"], kind)
                checked += 1
    assert checked == 480
