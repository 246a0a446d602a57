"""Gold plans and broken ones before the official evaluator, unchanged, in a process of its own."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deepplanning_data import CHECKOUT, PYTHON, needs_checkout
from synthetic_world import AllTasks

from opd_ray.deepplanning.synthetic.gold_plan import gold_plan
from opd_ray.errors import InputError

TRAVEL = Path(CHECKOUT) / "benchmark/deepplanning/travelplanning"
pytestmark = needs_checkout

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

    def __init__(self, all_tasks: AllTasks, folder: Path) -> None:
        self.folder = folder
        self.tasks, self.databases = all_tasks.tasks, all_tasks.databases
        self.table = all_tasks.table
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
def trial(all_tasks: AllTasks, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = Trial(all_tasks, tmp_path_factory.mktemp("trial"))
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
