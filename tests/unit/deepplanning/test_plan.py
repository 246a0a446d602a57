"""Plans in the prescribed lines as the evaluator's JSON: to the letter, tolerant, never raising."""

from __future__ import annotations

import json
import random
import time

import pytest

from opd_ray.deepplanning.travel.plan import plan_text, read_plan

PLAN = """Thoughts with a <plan>draft</plan></think>
Here it is.
<plan>
Day 1:
Current City: from Hefei to Nanjing
Accommodation: Home Inn - North Station, Gym, ¥1,300/room/night
07:05-08:10 | travel_intercity_public | train G7798, Hefei - Nanjing South, ¥67.5/person
08:10-08:40 | buffer | Leave the station, collect luggage
08:40-09:00 | travel_city | Nanjing South - Home Inn - North Station, Gym, 9.5km, 20min, ¥30
09:00-09:30 | hotel | Check-in, Home Inn - North Station, Gym
09:30-09:40 | travel_city | Home Inn - North Station, Gym - Halal - Lamb, 0.4km, 10min, ¥0
11:30-12:30 | meal | Lunch, Halal - Lamb, ¥100/person
12:30-14:30 | attraction | Knife, Scissors, and Sword Museum, ¥0/person
14:30-24:00 | hotel | Rest, Home Inn - North Station, Gym

Day 2:
Current City: from Nanjing to Hefei
Accommodation: -
09:00-10:00 | attraction | The Palace (East Gate), ¥60/person
10:00-12:00 | travel_intercity_public | flight CA1206, Nanjing Lukou - Hefei Xinqiao, ¥550/person
12:00-13:00 | attraction | Swan Lake, Free

**Budget Summary**:
   **Transportation: 1,265 RMB**. Train 67.5*2
   **Accommodation**: 1*1300 = 1300 RMB
   **Meals: 200 RMB**
   **Attractions & Tickets: 120 RMB**
   **Total Estimated Budget: 2885 RMB**
</plan> done"""
HOME = "Home Inn - North Station, Gym"


def activity(slot: str, kind: str, **details: object) -> dict[str, object]:
    return {
        "time_slot": slot,
        "type": kind,
        "details": {"from" if name == "start" else name: value for name, value in details.items()},
    }


def test_a_plan_in_the_prescribed_form() -> None:
    plan = read_plan(PLAN)
    assert plan.given
    assert plan.problems == []
    assert plan.as_json == {
        "budget_summary": {
            "transportation": 1265,
            "currency": "CNY",
            "accommodation": 1300,
            "meals": 200,
            "attractions_and_tickets": 120,
            "total_estimated_budget": 2885,
        },
        "daily_plans": [
            {
                "day_number": 1,
                "current_city": "from Hefei to Nanjing",
                "accommodation": {"name": HOME, "price_per_night": 1300},
                "activities": [
                    activity(
                        "07:05-08:10",
                        "travel_intercity_public",
                        mode="train",
                        number="G7798",
                        start="Hefei",
                        to="Nanjing South",
                        cost=67.5,
                    ),
                    activity(
                        "08:10-08:40", "buffer", description="Leave the station, collect luggage"
                    ),
                    activity(
                        "08:40-09:00",
                        "travel_city",
                        start="Nanjing South",
                        to=HOME,
                        distance="9.5km",
                        duration="20min",
                        cost=30,
                    ),
                    activity("09:00-09:30", "hotel", activity="Check-in", name=HOME),
                    activity(
                        "09:30-09:40",
                        "travel_city",
                        start=HOME,
                        to="Halal - Lamb",
                        distance="0.4km",
                        duration="10min",
                        cost=0,
                    ),
                    activity(
                        "11:30-12:30",
                        "meal",
                        meal_type="lunch",
                        name="Halal - Lamb",
                        cost=100,
                    ),
                    activity(
                        "12:30-14:30",
                        "attraction",
                        name="Knife, Scissors, and Sword Museum",
                        city="Nanjing",
                        cost=0,
                    ),
                    activity("14:30-24:00", "hotel", activity="Rest", name=HOME),
                ],
            },
            {
                "day_number": 2,
                "current_city": "from Nanjing to Hefei",
                "activities": [
                    activity(
                        "09:00-10:00",
                        "attraction",
                        name="The Palace (East Gate)",
                        city="Nanjing",
                        cost=60,
                    ),
                    activity(
                        "10:00-12:00",
                        "travel_intercity_public",
                        mode="flight",
                        number="CA1206",
                        start="Nanjing Lukou",
                        to="Hefei Xinqiao",
                        cost=550,
                    ),
                    activity("12:00-13:00", "attraction", name="Swan Lake", city="Hefei", cost=0),
                ],
            },
        ],
    }


def lines(*activities: str, head: str = "Day 1:\nCurrent City: Nanjing") -> list[dict[str, object]]:
    found = read_plan("<plan>" + "\n".join([head, *activities]) + "</plan>")
    return found.days[0]["activities"] if found.days else []


@pytest.mark.parametrize(
    ("line", "slot", "kind", "details"),
    [
        (
            "- **9:00–10:00** | Attraction | West Lake，￥1,060.50/人（学生免费）",
            "09:00-10:00",
            "attraction",
            {"name": "West Lake", "city": "Nanjing", "cost": 1060.5},
        ),
        (
            "| 09:00 - 10:00 ｜ travel city | A - B | 30 min | 2.5 km | 40 RMB |",
            "09:00-10:00",
            "travel_city",
            {"distance": "2.5 km", "duration": "30 min", "cost": 40, "from": "A", "to": "B"},
        ),
        (
            "09:00-10:00 | travel_intercity_public | G7, A → B, ¥9/person",
            "09:00-10:00",
            "travel_intercity_public",
            {"mode": "train", "number": "G7", "from": "A", "to": "B", "cost": 9},
        ),
        (
            "09:00-10:00 | travel_intercity_public | 9C8523, A - B",
            "09:00-10:00",
            "travel_intercity_public",
            {"mode": "flight", "number": "9C8523", "from": "A", "to": "B", "cost": None},
        ),
        (
            "17:00-18:00 | meal | Jingbao · Established 1994, ¥30",
            "17:00-18:00",
            "meal",
            {"meal_type": "dinner", "name": "Jingbao · Established 1994", "cost": 30},
        ),
        (
            "17:00-18:00 | meal | DINNER, Bar 7, ¥30 per person (set menu)",
            "17:00-18:00",
            "meal",
            {"meal_type": "dinner", "name": "Bar 7", "cost": 30},
        ),
        (
            "17:00-18:00 | hotel | Rest",
            "17:00-18:00",
            "hotel",
            {"activity": "Rest", "name": ""},
        ),
        (
            "17:00-18:00 | travel_city | A, 1h 20min, ¥7",
            "17:00-18:00",
            "travel_city",
            {"from": "A", "to": "", "distance": "", "duration": "1h 20min", "cost": 7},
        ),
        ("17:00-18:00 | buffer", "17:00-18:00", "buffer", {"description": ""}),
        ("17:00-18:00 | nap | deep", "17:00-18:00", "nap", {"description": "deep"}),
    ],
)
def test_what_a_reader_understands(
    line: str, slot: str, kind: str, details: dict[str, object]
) -> None:
    assert lines(line) == [{"time_slot": slot, "type": kind, "details": details}]


def test_headers_in_other_dress() -> None:
    plan = read_plan(
        "<PLAN>\nBudget Summary: \nTransportation: (650+550)*2 = 2,400 RMB\nOther: 12.5\n"
        "### **Day 1 (Wed)**\n**Current City:** Nanjing\n"
        "* Accommodation: **Hotel X**, ￥5/晚\n"
        "Day trips are fun\n09:00-10:00 | buffer | x\n"
        "Accommodation: 10 RMB\nTotal: 99 RMB\nDay 2\nAccommodation: None\n</PLAN>"
    )
    assert plan.as_json == {
        "budget_summary": {
            "transportation": 2400,
            "currency": "CNY",
            "other": 12.5,
            "accommodation": 10,
            "total_estimated_budget": 99,
        },
        "daily_plans": [
            {
                "day_number": 1,
                "current_city": "Nanjing",
                "accommodation": {"name": "Hotel X", "price_per_night": 5},
                "activities": [
                    {
                        "time_slot": "09:00-10:00",
                        "type": "buffer",
                        "details": {"description": "x"},
                    }
                ],
            },
            {"day_number": 2, "current_city": "", "activities": []},
        ],
    }


def test_what_cannot_be_read_is_told() -> None:
    plan = read_plan(
        "<plan>08:00-09:00 | buffer | early\nDay 1:\nlunch | somewhere\n"
        "09:00-10:00 | sleep | x\n10:00-11:00 | travel_city | nowhere, ¥1</plan>"
    )
    assert plan.problems == [
        "line 1 stands before the first day",
        "line 3 is no activity: 'lunch | somewhere'",
        "line 4: 'sleep' is no type of activity",
        "no route with two ends: 'nowhere'",
    ]
    nothing = read_plan("<plan>I give up.</plan>")
    assert nothing.given
    assert nothing.as_json == {"budget_summary": {}, "daily_plans": []}
    assert nothing.problems == ["no line says which day it is about"]


def test_where_a_plan_is() -> None:
    assert plan_text("no plan") == ""
    assert plan_text("<plan>a</plan> <plan> </plan> <plan>b\n</plan>") == "a\n\nb"
    assert plan_text("<plan>a</plan></think>") == ""
    assert plan_text("<plan>cut off") == ""
    assert not read_plan("").given


def test_no_response_raises_nor_takes_long() -> None:
    draw = random.Random(3)
    pieces = [*PLAN.splitlines(), "|", ",", " - ", "¥", "Day 99", "24:00-1:00", "9" * 5000, "()"]
    pieces += [":", "\x00", "\ud800", "٣", "，", " ", "\n", "<plan>", "</plan>", "</think>", "h"]
    begun = time.process_time()
    for _ in range(400):
        chosen = [draw.choice(pieces) for _ in range(draw.randint(1, 30))]
        text = draw.choice(["", "\n"]).join(chosen)
        if draw.random() < 0.5:
            cut = draw.randint(0, len(text))
            text = text[cut:] + text[:cut]
        json.dumps(read_plan(f"<plan>{text}</plan>").as_json)
    # Long runs, over which a careless pattern takes hours.
    for run in (" ", ",", "-", " - ", "9", "9,", "| ", "(", "*", ", ¥1", "min ", "1 h ", "a: "):
        for line in ("Day 1:\n09:00-10:00 | travel_city | A - B{}x", "Day 1:\n{}", "{}¥1/a {}("):
            read_plan("<plan>" + line.replace("{}", run * 5_000) + "</plan>")
    assert time.process_time() - begun < 10
