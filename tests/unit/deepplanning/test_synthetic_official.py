"""Gold plans and broken ones before the official evaluator, unchanged, in a process of its own.

``OPD_RAY_DEEPPLANNING`` names a clone of Qwen-Agent, ``OPD_RAY_DEEPPLANNING_PYTHON`` a Python with
the packages that it imports (this one without it).
"""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from opd_ray.deepplanning.synthetic.gold_plan import gold_plan
from opd_ray.deepplanning.synthetic.write import write_databases
from opd_ray.errors import InputError

CHECKOUT = os.environ.get("OPD_RAY_DEEPPLANNING", "")
PYTHON = os.environ.get("OPD_RAY_DEEPPLANNING_PYTHON") or sys.executable
TRAVEL = Path(CHECKOUT) / "benchmark/deepplanning/travelplanning"
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="OPD_RAY_DEEPPLANNING is not set")

DRIVER = """
import sys
from pathlib import Path
from evaluation.eval_converted import evaluate_plans
database, *rounds = map(Path, sys.argv[1:])
for round in rounds:
    evaluate_plans(round, round / "tasks.json", database, workers=1)
"""
Plan = dict[str, Any]
Task = dict[str, Any]


class Trial:
    """The databases of all tasks, their gold plans, and the rounds that are evaluated at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = TRAVEL / "data/travelplanning_query_en.json"
        self.tasks: list[Task] = json.loads(file.read_text(encoding="utf-8"))
        self.databases = folder / "databases"
        write_databases(self.tasks, self.databases, 0)
        self.plans: dict[str, Plan] = {
            task["id"]: gold_plan(task, self.databases).json() for task in self.tasks
        }
        self.rounds: dict[str, Path] = {}

    def add(self, name: str, plans: dict[str, Plan], tasks: list[Task]) -> None:
        """A round: plans by task, scored against the tasks."""
        self.rounds[name] = self.folder / name
        written = self.rounds[name] / "converted_plans"
        written.mkdir(parents=True)
        for number, plan in plans.items():
            (written / f"id_{number}_converted.json").write_text(json.dumps(plan))
        file = self.rounds[name] / "tasks.json"
        file.write_text(json.dumps([task for task in tasks if task["id"] in plans]))

    def run(self) -> None:
        """Evaluate all rounds."""
        command = [PYTHON, "-c", DRIVER, str(self.databases), *map(str, self.rounds.values())]
        done = subprocess.run(command, cwd=TRAVEL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "missing" not in done.stdout, "a check was skipped"

    def scores(self, name: str) -> dict[str, dict[str, Any]]:
        """What the evaluator wrote, by task."""
        files = (self.rounds[name] / "evaluation").glob("id_*_score.json")
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return {score["sample_id"]: score for score in found}

    def table(self, number: str, name: str) -> list[dict[str, str]]:
        """The rows of a file of a task's database."""
        with (self.databases / f"id_{number}" / name).open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


def minutes(slot: str) -> list[int]:
    return [int(clock[:2]) * 60 + int(clock[3:]) for clock in slot.split("-")]


def slot(start: int, end: int) -> str:
    return f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"


def buffer(start: int, end: int) -> dict[str, Any]:
    details = {"description": "Rest"}
    return {"time_slot": slot(start, end), "type": "buffer", "details": details}


def acts(plan: Plan, kind: str) -> Iterator[tuple[list[dict[str, Any]], int, dict[str, Any]]]:
    """The activities of a type with the list that they stand in and where."""
    for day in plan["daily_plans"]:
        for place, act in enumerate(day["activities"]):
            if act["type"] == kind:
                yield day["activities"], place, act


def wrong_start(plan: Plan, trial: Trial, number: str) -> bool:
    day = plan["daily_plans"][0]
    day["current_city"] = "from Elsewhere to" + day["current_city"].split(" to")[1]
    return True


def wrong_price(plan: Plan, trial: Trial, number: str) -> bool:
    _, _, meal = next(acts(plan, "meal"))
    meal["details"]["cost"] -= 1
    return True


def no_bed(plan: Plan, trial: Trial, number: str) -> bool:
    activities = plan["daily_plans"][0]["activities"]
    activities.pop()
    return activities[-1]["type"] != "hotel"


def overlap(plan: Plan, trial: Trial, number: str) -> bool:
    _, _, way = next(acts(plan, "travel_city"))
    start, end = minutes(way["time_slot"])
    way["time_slot"] = slot(start, end + 10)
    return True


def late_dinner(plan: Plan, trial: Trial, number: str) -> bool:
    closing = {
        row["restaurant_name"]: row["closing_time"]
        for row in trial.table(number, "restaurants/restaurants.csv")
    }
    for day in plan["daily_plans"][:-1]:
        activities = day["activities"]
        way, meal, home, bed = activities[-4:]
        types = [act["type"] for act in (way, meal, home, bed)]
        if types != ["travel_city", "meal", "travel_city", "hotel"]:
            continue
        if closing[meal["details"]["name"]] < "20:00":
            continue
        (start, end), (leave, back) = minutes(way["time_slot"]), minutes(home["time_slot"])
        way["time_slot"] = slot(22 * 60 - (end - start), 22 * 60)
        meal["time_slot"] = slot(22 * 60, 23 * 60)
        home["time_slot"] = slot(23 * 60, 23 * 60 + back - leave)
        bed["time_slot"] = slot(23 * 60 + back - leave, 24 * 60)
        activities.insert(-4, buffer(start, 22 * 60 - (end - start)))
        return True
    return False


def hasty_meal(plan: Plan, trial: Trial, number: str) -> bool:
    activities, place, meal = next(acts(plan, "meal"))
    start, end = minutes(meal["time_slot"])
    meal["time_slot"] = slot(start, start + 20)
    activities.insert(place + 1, buffer(start + 20, end))
    return True


def wrong_total(plan: Plan, trial: Trial, number: str) -> bool:
    plan["budget_summary"]["total_estimated_budget"] *= 1.5
    return True


def twice(plan: Plan, trial: Trial, number: str) -> bool:
    rows = trial.table(number, "attractions/attractions.csv")
    shortest = {r["attraction_name"]: round(60 * float(r["min_visit_hours"])) for r in rows}
    for activities, place, visit in acts(plan, "attraction"):
        start, end = minutes(visit["time_slot"])
        least = shortest[visit["details"]["name"]]
        if end - start >= 2 * least and visit["details"]["cost"] == 0:
            again = copy.deepcopy(visit)
            visit["time_slot"] = slot(start, start + least)
            again["time_slot"] = slot(start + least, end)
            activities.insert(place + 1, again)
            return True
    return False


BREAKINGS: dict[str, Callable[[Plan, Trial, str], bool]] = {
    "Route Consistency": wrong_start,
    "Sandbox Compliance": wrong_price,
    "Itinerary Structure": no_bed,
    "Time Feasibility": overlap,
    "Business Hours": late_dinner,
    "Duration Rationality": hasty_meal,
    "Cost Calculation Accuracy": wrong_total,
    "Activity Diversity": twice,
}
GROUPS = ("hotel", "restaurant", "attraction", "train", "flight")
ROUND = 6


def other_entity(trial: Trial, task: Task, group: str) -> Plan | None:
    """A plan as good as the gold one, for a task that asks for another entity in one place."""
    number, meta = task["id"], task["meta_info"]
    kinds = [kind for kind in meta["hard_constraints"] if kind.startswith(f"{group}_")]
    if not kinds:
        return None
    asked = meta["hard_constraints"][kinds[0]]
    if group == "hotel":
        key, file, column = "hotel_name", "hotels/hotels.csv", "name"
    elif group == "restaurant":
        key, file, column = "restaurant_name", "restaurants/restaurants.csv", "restaurant_name"
    elif group == "attraction":
        key, file, column = "attraction_names", "attractions/attractions.csv", "attraction_name"
    else:
        key = next(k for k in asked if k.endswith("bound_" + group + "_no"))
        file, column = f"{group}s/{group}s.csv", f"{group}_no"
    gold = asked[key][0] if group == "attraction" else asked[key]
    for row in trial.table(number, file):
        name = row[column]
        if "origin_city" in row and (row["origin_city"] == meta["org"]) != ("outbound" in key):
            continue
        changed = copy.deepcopy(task)
        wish = changed["meta_info"]["hard_constraints"][kinds[0]]
        wish[key] = [name, *asked[key][1:]] if group == "attraction" else name
        try:
            plan = gold_plan(changed, trial.databases).json()
        except InputError:
            continue
        if json.dumps(gold) not in json.dumps(plan):
            return plan
    return None


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = Trial(tmp_path_factory.mktemp("trial"))
    trial.add("gold", trial.plans, trial.tasks)
    for place, (name, breaking) in enumerate(BREAKINGS.items()):
        broken: dict[str, Plan] = {}
        for task in trial.tasks[place::7]:
            plan = copy.deepcopy(trial.plans[task["id"]])
            if len(broken) < ROUND and breaking(plan, trial, task["id"]):
                broken[task["id"]] = plan
        trial.add(name, broken, trial.tasks)
    for place, group in enumerate(GROUPS):
        others: dict[str, Plan] = {}
        for task in trial.tasks[place::5]:
            if len(others) < ROUND and (found := other_entity(trial, task, group)):
                others[task["id"]] = found
        trial.add(group, others, trial.tasks)
    poorer = copy.deepcopy([t for t in trial.tasks if "budget_constraint" in str(t["meta_info"])])
    for task in poorer:
        total = trial.plans[task["id"]]["budget_summary"]["total_estimated_budget"]
        task["meta_info"]["hard_constraints"]["budget_constraint"] = {"max_budget": total - 1}
    trial.add("budget", {t["id"]: trial.plans[t["id"]] for t in poorer}, poorer)
    trial.run()
    return trial


def test_the_gold_plans_of_all_tasks_are_perfect(trial: Trial) -> None:
    summary = trial.rounds["gold"] / "evaluation/evaluation_summary.json"
    metrics = json.loads(summary.read_text(encoding="utf-8"))["metrics"]
    dimensions = metrics.pop("commonsense_dimensions")
    assert metrics == {
        "delivery_rate": 1.0,
        "commonsense_score": 1.0,
        "personalized_score": 1.0,
        "composite_score": 1.0,
        "case_acc": 1.0,
    }
    assert {name: d["perfect_count"] for name, d in dimensions.items()} == dict.fromkeys(
        BREAKINGS, 120
    )
    kinds = {k for t in trial.tasks for k in t["meta_info"]["hard_constraints"]}
    assert len(kinds) == 38


@pytest.mark.parametrize("dimension", BREAKINGS)
def test_a_plan_broken_in_one_dimension_loses_just_that(trial: Trial, dimension: str) -> None:
    scores = trial.scores(dimension)
    assert len(scores) == ROUND
    for score in scores.values():
        lost = {d for d, value in score["commonsense_dimension_scores"].items() if value != 1.0}
        assert lost == {dimension}
        assert score["scores"]["commonsense_weighted_score"] == 0.875
        assert score["scores"]["personalized_score"] == 1.0
        assert score["scores"]["case_acc"] == 0.0


@pytest.mark.parametrize("group", [*GROUPS, "budget"])
def test_a_plan_that_breaks_a_hard_constraint_is_only_less_personal(
    trial: Trial, group: str
) -> None:
    scores = trial.scores(group)
    assert len(scores) >= ROUND
    for score in scores.values():
        assert score["scores"] == {
            "commonsense_weighted_score": 1.0,
            "personalized_score": 0.0,
            "composite_score": 0.5,
            "case_acc": 0.0,
        }
        failed = score["personalized_dimension_score"]["constraints"]
        assert any(not c["passed"] for kind, c in failed.items() if kind.startswith(group))


def clocks(sentence: str) -> list[str]:
    """The two times of "between 6:00 AM and 13:00" as HH:MM:SS, read by the standard library."""
    found = []
    for part in sentence.split("between ")[1].split(" and "):
        word = re.sub(r"( in the afternoon)?\.?$", "", part)
        form = "%I:%M %p" if word.endswith("M") else "%H:%M"
        found.append(datetime.strptime(word, form).strftime("%H:%M:%S"))
    return [found[0], "24" if found[1] == "00:00:00" else found[1]]


def answers(trial: Trial, task: Task, kind: str) -> tuple[set[str], set[str]]:
    """The names of the entities that meet a constraint in the tables, and those that it names."""
    number, meta = task["id"], task["meta_info"]
    asked = meta["hard_constraints"][kind]
    group = kind.split("_")[0]
    if group in ("train", "flight"):
        return journeys(trial, task, kind)
    if group == "hotel":
        rows = trial.table(number, "hotels/hotels.csv")
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
        rows = trial.table(number, "attractions/attractions.csv")
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
    rows = trial.table(number, "restaurants/restaurants.csv")
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
            for way in trial.table(number, "transportation/distance_matrix.csv")
        }

        def far(row: dict[str, str]) -> int:
            start = f"{row['query_latitude']},{row['query_longitude']}"
            return ways[start, f"{row['latitude']},{row['longitude']}"]

        rows = [row for row in rows if far(row) == min(map(far, rows))]
    return {row["restaurant_name"] for row in rows}, {name}


def journeys(trial: Trial, task: Task, kind: str) -> tuple[set[str], set[str]]:
    number, meta = task["id"], task["meta_info"]
    asked, mode = meta["hard_constraints"][kind], kind.split("_")[0]
    table = trial.table(number, f"{mode}s/{mode}s.csv")
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


def test_what_constraints_name_is_the_only_answer_in_every_database(trial: Trial) -> None:
    checked = 0
    for task in trial.tasks:
        for kind in task["meta_info"]["hard_constraints"]:
            if kind != "budget_constraint":
                found, named = answers(trial, task, kind)
                assert found == named, (task["id"], kind)
                checked += 1
    assert checked == 480
