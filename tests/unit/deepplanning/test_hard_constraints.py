"""Hard constraints from a plan's words alone: by hand, and against the benchmark's own verdicts."""

from __future__ import annotations

import importlib.util
import random
from copy import deepcopy
from typing import Any

import pytest
from deepplanning_data import CHECKOUT, needs_checkout

from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.travel.hard import judged

META: dict[str, Any] = {
    "people_number": 5,
    "room_number": 2,
    "hard_constraints": {
        "train_seat_class": {"outbound_train_no": "G1", "inbound_train_no": "G2"},
        "flight_cheapest_direct": {"outbound_flight_no": "CA1"},
        "hotel_highest_rated": {"hotel_name": "Hotel X"},
        "restaurant_must_eat_named": {"restaurant_name": "Bar"},
        "attraction_must_visit_named": {"attraction_names": ["Lake", "Hill"]},
        "budget_constraint": {"max_budget": 1000},
        "something_new": {},
    },
}


def act(kind: str, **details: Any) -> dict[str, Any]:
    return {"type": kind, "details": details}


def plan() -> dict[str, Any]:
    """Meets all of META, at a cost of 5 x (20 + 30) + 2 x 100 + 5 x 40 + 5 x 10 + 2 x 150."""
    first = [
        act("travel_intercity_public", mode="Train", number="G1", cost=20),
        act("travel_intercity_public", mode="flight", number="CA1", cost=9_999),
        act("travel_city", cost="150"),
        act("meal", name="Bar", cost=40),
        act("attraction", name="Lake", cost=10),
        act("attraction", name="Hill", cost=None),
    ]
    last = [act("travel_intercity_public", mode="train", number="G2", cost=30)]
    stay = {"name": "Hotel X", "price_per_night": 100}
    return {
        "daily_plans": [
            {"accommodation": stay, "activities": first},
            {"accommodation": {"name": "Hotel Y", "price": 7}, "activities": last},
        ]
    }


def test_a_plan_that_meets_all() -> None:
    found = judged(plan(), META)
    assert found == dict.fromkeys(list(META["hard_constraints"])[:-1], True)


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda p: p[0]["activities"].pop(0), {"train_seat_class"}),
        (lambda p: p[1]["activities"].clear(), {"train_seat_class"}),
        (
            lambda p: p[0]["activities"][1]["details"].update(mode="train"),
            {"flight_cheapest_direct"},
        ),
        (lambda p: p[0]["accommodation"].update(name="Hotel x"), {"hotel_highest_rated"}),
        (lambda p: p[0]["activities"][3].update(type="attraction"), {"restaurant_must_eat_named"}),
        (lambda p: p[0]["activities"].pop(), {"attraction_must_visit_named"}),
        (lambda p: p[1]["activities"][0]["details"].update(cost=30.2), {"budget_constraint"}),
        (lambda p: p[0]["activities"][2]["details"].update(cost=151), {"budget_constraint"}),
        (lambda p: p[0]["accommodation"].update(price=101), {"budget_constraint"}),
        (lambda p: p[1]["accommodation"].update(price=10_000), set()),
    ],
)
def test_a_plan_that_misses_one(change: Any, lost: set[str]) -> None:
    broken = plan()
    change(broken["daily_plans"])
    if lost == {"train_seat_class"} and broken["daily_plans"][1]["activities"]:
        # Without the first way the second one's price counts.
        broken["daily_plans"][0]["activities"][0]["details"]["cost"] = 0
    found = judged(broken, META)
    assert {kind for kind, met in found.items() if not met} == lost


def test_no_plan_meets_nothing() -> None:
    assert set(judged({"daily_plans": []}, META).values()) == {False}
    assert judged(plan(), {}) == {}


@pytest.mark.parametrize("mode", ["train", "Railway", "火车", "高铁", "gaotie"])
def test_words_for_a_train(mode: str) -> None:
    said = plan()
    said["daily_plans"][0]["activities"][0]["details"]["mode"] = mode
    assert judged(said, META)["train_seat_class"]


@pytest.mark.parametrize("mode", ["Flight", "飞机", "airplane", "plane"])
def test_words_for_a_plane(mode: str) -> None:
    said = plan()
    said["daily_plans"][0]["activities"][1]["details"]["mode"] = mode
    assert judged(said, META)["flight_cheapest_direct"]


@pytest.mark.parametrize("cost", [-10_000, float("nan"), "nan"])
def test_what_is_no_price_of_a_journey_costs_nothing(cost: Any) -> None:
    said = plan()
    said["daily_plans"][0]["activities"][0]["details"]["cost"] = cost
    said["daily_plans"][1]["activities"][0]["details"]["cost"] = 50
    assert judged(said, META)["budget_constraint"]  # 1,000 again
    said["daily_plans"][1]["activities"][0]["details"]["cost"] = 51
    assert not judged(said, META)["budget_constraint"]


def test_a_constraint_that_names_nothing_is_not_met() -> None:
    for kind, wanted in {
        "hotel_x": {"hotel_name": ""},
        "restaurant_x": {},
        "attraction_x": {"attraction_names": []},
        "budget_constraint": {},
    }.items():
        assert judged(plan(), {"hard_constraints": {kind: wanted}}) == {kind: False}
    assert judged(plan(), {"hard_constraints": {"train_x": {}}}) == {"train_x": True}


def official_eval_hard() -> Any:
    path = Checkout.at(CHECKOUT).travel / "evaluation" / "constraints_hard.py"
    spec = importlib.util.spec_from_file_location("official_constraints_hard", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.eval_hard


def gold_plan(meta: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A plan with all that the constraints of a task name."""
    days: list[dict[str, Any]] = [{"activities": []} for _ in range(meta["days"])]
    for wanted in meta["hard_constraints"].values():
        for kind in ("train", "flight"):
            for way, day in (("outbound", days[0]), ("inbound", days[-1])):
                if number := wanted.get(f"{way}_{kind}_no"):
                    leg = {"mode": kind, "number": number, "cost": draw.randint(1, 900)}
                    day["activities"].append(act("travel_intercity_public", **leg))
        if "restaurant_name" in wanted:
            meal = act(
                "meal", name=wanted["restaurant_name"], cost=wanted.get("price_per_person", 50)
            )
            draw.choice(days)["activities"].append(meal)
        for name in wanted.get("attraction_names", ()):
            sight = act("attraction", name=name, cost=draw.randint(0, 99))
            draw.choice(days)["activities"].append(sight)
        if "hotel_name" in wanted:
            for day in days[:-1]:
                stay = {
                    "name": wanted["hotel_name"],
                    "price_per_night": wanted.get("hotel_price", 300),
                }
                day["accommodation"] = stay
    for day in days:
        day["activities"].append(act("travel_city", cost=draw.randint(0, 60)))
    return {"budget_summary": {}, "daily_plans": days}


JUNK: list[Any] = [None, "", "x", 0, -3, 1.5, "12", "1,000", True, [], {}, ["x"], {"cost": "9"}]
JUNK += [float("nan"), float("inf"), "nan", "flight", "飞机", "高铁", 10**400, "details"]


def disturbed(value: Any, draw: random.Random, often: float) -> Any:
    """A copy in which some parts are others, or gone."""
    if draw.random() < often:
        return deepcopy(draw.choice(JUNK))
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if draw.random() > often}
        return {key: disturbed(inner, draw, often) for key, inner in kept.items()}
    if isinstance(value, list):
        return [disturbed(inner, draw, often) for inner in value if draw.random() > often]
    return value


@needs_checkout
def test_the_verdicts_are_those_of_the_benchmark() -> None:
    official = official_eval_hard()
    tasks = Checkout.at(CHECKOUT).travel_tasks
    assert len(tasks) == 120
    assert sum(len(task["meta_info"]["hard_constraints"]) for task in tasks) == 496
    draw = random.Random(5)
    met = missed = 0
    for task in tasks:
        meta = task["meta_info"]
        whole = gold_plan(meta, draw)
        named = {k: v for k, v in judged(whole, meta).items() if k != "budget_constraint"}
        assert set(named.values()) == {True}
        plans = [whole, *(disturbed(whole, draw, often) for often in (0.01, 0.03, 0.1) * 30)]
        for tried in plans:
            if not isinstance(tried, dict):
                continue  # the evaluator itself fails there
            expected = {kind: verdict for kind, (verdict, _) in official(tried, meta).items()}
            assert judged(tried, meta) == expected, (task["id"], tried)
            met += sum(map(bool, expected.values()))
            missed += len(expected) - sum(map(bool, expected.values()))
    assert met > 5_000
    assert missed > 5_000


@needs_checkout
def test_the_budget_is_added_up_as_the_benchmark_does() -> None:
    official = official_eval_hard()
    draw = random.Random(6)
    verdicts = set()
    for _ in range(3_000):
        people, rooms = draw.randint(1, 9), draw.randint(1, 4)
        meta: dict[str, Any] = {"days": 3, "people_number": people, "room_number": rooms}
        meta["hard_constraints"] = {
            "hotel_price_range": {"hotel_name": "H", "hotel_price": draw.random() * 500},
            "train_seat_class": {"outbound_train_no": "G1", "inbound_train_no": "G2"},
            "attraction_top_rated_must_visit": {"attraction_names": ["A", "B"]},
            "budget_constraint": {"max_budget": draw.choice([10, 4_000, "5000", "x", None])},
        }
        tried = disturbed(gold_plan(meta, draw), draw, draw.choice([0.0, 0.01, 0.05]))
        if isinstance(tried, dict):
            expected = {kind: verdict for kind, (verdict, _) in official(tried, meta).items()}
            assert judged(tried, meta) == expected
            verdicts.add(expected["budget_constraint"])
    assert verdicts == {True, False}
