"""The travel part's checkout and environment, on a checkout and a database that a test writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deepplanning_data import CHECKOUT, needs_checkout, write_checkout, write_database

from opd_ray.deepplanning.checkout import Checkout, MissingBenchmark, read_tasks
from opd_ray.deepplanning.travel.environment import TravelEnvironment
from opd_ray.deepplanning.travel.tools import travel_tools
from opd_ray.environments.environment import Environment, ToolResult
from opd_ray.environments.load import environment_factory

PATH = "opd_ray.deepplanning.travel.environment:TravelEnvironment"


def row(database: Path, **other: Any) -> dict[str, Any]:
    meta = {"hard_constraints": {"hotel_x": {"hotel_name": "H"}, "restaurant_x": {}}}
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    found = {"task_id": "1", "prompt": prompt, "database": str(database)}
    return found | {"meta_info": json.dumps(meta)} | other


def acting(tmp_path: Path) -> tuple[Environment, dict[str, Any]]:
    make = environment_factory(PATH, {"checkout": str(write_checkout(tmp_path / "c"))}, "key")
    return make(), row(write_database(tmp_path / "id_1"))


def asked(environment: Environment, name: str, **arguments: Any) -> str:
    result = environment.call_tool(name, arguments)
    assert isinstance(result, ToolResult)
    assert not result.done
    return result.text


def test_it_opens_with_the_row_and_answers_from_its_database(tmp_path: Path) -> None:
    environment, found = acting(tmp_path)
    assert len(environment.tools) == 9
    assert environment.reset(found) == found["prompt"]
    leg = {"origin": "Hefei", "destination": "Nanjing"}
    assert asked(environment, "query_train_info", **leg, depDate="2025-11-20") == (
        "nothing for Hefei Nanjing 2025-11-20"
    )
    routes = json.loads(asked(environment, "query_train_info", **leg, depDate="2025-11-12"))
    assert [route[0]["price"] for route in routes] == [67.5, 0]
    first, second = routes[0][0]["leg 1"], routes[0][0]["leg 2"]
    assert (first["depCityName"], second["depCityName"]) == ("Hefei", "Chuzhou 0 Station")
    assert first["REMAINING_SEATS"] == "7"
    assert [leg["marketingTransportNo"] for leg in routes[1][0].values() if leg] == [
        "D10",
        "D9",
        "D0",
    ]
    assert routes[1][0]["leg 2"]["REMAINING_SEATS"] == "SUFFICIENT"
    assert asked(environment, "query_flight_info", **leg, depDate="2025-11-20") == (
        '{"error": "Tool1.<lambda>() missing 1 required positional argument: \'v3\'"}'
    )
    assert asked(environment, "query_road_route_info", origin="32.0,118.0", destination="x") == (
        "x is nowhere"
    )
    assert json.loads(
        asked(environment, "query_road_route_info", origin="32.0,118.0", destination="32.1,118.1")
    ) == {
        "origin": "32.0,118.0",
        "destination": "32.1,118.1",
        "distance_in_meters": 1500,
        "duration_in_minutes": 20,
        "cost": 0,
    }
    assert asked(environment, "recommend_attractions", city="x", attraction_type="Landmark") == (
        "RECOMMENDATIONS\nLaomendong/Old/Landmark\nLaomendong/nan/Landmark"
    )
    error = json.loads(asked(environment, "search_location"))["error"]
    assert error.startswith("'place_name' is a required property")
    environment.close()


def test_figures_need_a_plan_alone(tmp_path: Path) -> None:
    environment, found = acting(tmp_path)
    environment.reset(found)
    hotel = "<plan>Day 1\nAccommodation: H, ¥1/room/night\nDay 2</plan>"

    def figures(*messages: dict[str, Any]) -> Any:
        return environment.verify([{"role": "user", "content": hotel}, *messages])

    half = {"success": 0.0, "constraints_met": 0.5, "plan_given": 1.0, "synthetic": 0.0}
    none = dict.fromkeys(half, 0.0)
    assert figures({"role": "assistant", "content": f"thinking</think>{hotel}"}) == half
    assert figures({"role": "assistant", "content": hotel, "tool_calls": [{}]}) == none
    assert figures({"role": "assistant", "content": hotel}, {"role": "tool", "content": ""}) == none
    assert figures() == none
    (tmp_path / "synthetic.json").write_text("{}", encoding="utf-8")
    environment.reset(found | {"meta_info": {"hard_constraints": {"train_x": {}}}})
    assert figures({"role": "assistant", "content": hotel}) == dict.fromkeys(half, 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"meta_info": "{"}, "task '1': column 'meta_info': JSONDecodeError"),
        ({"meta_info": "[]"}, "task '1': column 'meta_info' is no object"),
        ({"database": "/nowhere/id_1"}, "/nowhere/id_1: there is no such database"),
    ],
)
def test_a_row_that_is_none_of_ours_is_named(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    environment, found = acting(tmp_path)
    with pytest.raises(MissingBenchmark) as raised:
        environment.reset(found | change)
    assert said in str(raised.value)
    with pytest.raises(MissingBenchmark, match="no column 'database'; make the prompts with"):
        environment.reset({key: value for key, value in found.items() if key != "database"})


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda t: (t / "tools/tool_schema_en.json").unlink(), "tool_schema_en.json: is not there"),
        (lambda t: (t / "tools/tool_schema_en.json").write_text("[1]"), "no list of function"),
        (lambda t: (t / "tools/tool_schema_en.json").write_text("{"), "JSONDecodeError"),
        (
            lambda t: replace(t / "tools/tool_schema_en.json", "search_location", "fly"),
            "other tools than the nine that opd-ray knows (fly, search_location)",
        ),
        (
            lambda t: replace(t / "tools/all_tool.py", "'search_location'", "'fly'"),
            "has no tool 'search_location'",
        ),
        (lambda t: replace(t / "tools/all_tool.py", "'segment'", "'leg'"), "has no 'segment'"),
        (
            lambda t: replace(t / "tools/all_tool.py", "f'{c} is nowhere'", "open(c)"),
            "is more than texts (Call in line",
        ),
        (lambda t: replace(t / "tools/all_tool.py", "LANG_FIELDS", "WORDS"), "has no LANG_FIELDS"),
        (lambda t: (t / "tools/all_tool.py").write_text("def"), "all_tool.py: SyntaxError"),
    ],
)
def test_what_a_checkout_lacks_is_named(tmp_path: Path, break_it: Any, said: str) -> None:
    folder = write_checkout(tmp_path / "c")
    break_it(folder / "benchmark" / "deepplanning" / "travelplanning")
    with pytest.raises(MissingBenchmark) as raised:
        TravelEnvironment(str(folder))
    assert said in str(raised.value)


def test_where_a_checkout_is(tmp_path: Path) -> None:
    folder = write_checkout(tmp_path / "c")
    assert Checkout.at(folder) == Checkout.at(folder / "benchmark" / "deepplanning")
    assert Checkout.at(folder).travel_prompt == "Plan a trip."
    with pytest.raises(MissingBenchmark, match=r"key = x: there is no such folder; clone"):
        Checkout.at("x", "key =")
    with pytest.raises(MissingBenchmark, match="no benchmark/deepplanning in it: give a clone"):
        Checkout.at(tmp_path)
    prompts = Checkout.at(folder).travel / "agent" / "prompts.py"
    prompts.write_text("SYSTEM_PROMPT_ZH = '1'", encoding="utf-8")
    with pytest.raises(MissingBenchmark, match=r"prompts.py: assigns nothing to SYSTEM_PROMPT_EN"):
        _ = Checkout.at(folder).travel_prompt


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds no list of tasks"),
        ("[3]", "task 1 is int"),
        ('[{"id": "1", "meta_info": {}}]', "task 1 has no 'query' (it has id, meta_info)"),
        ('[{"id": "1", "query": 3, "meta_info": {}}]', "task 1: 'query' is int"),
        (
            '[{"id": "1", "query": "q", "meta_info": {"days": 2}}]',
            "task '1', meta_info has no 'hard_constraints' (it has days)",
        ),
    ],
)
def test_a_file_of_tasks_that_is_none(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(MissingBenchmark) as raised:
        read_tasks(path)
    assert said in str(raised.value)


def test_two_tasks_of_one_id(tmp_path: Path) -> None:
    task = {"id": 1, "query": "q", "meta_info": {"days": 2, "hard_constraints": {}}}
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([task, task]), encoding="utf-8")
    with pytest.raises(MissingBenchmark, match="two tasks have the id '1'"):
        read_tasks(path)


@needs_checkout
def test_the_prompt_of_the_checkout() -> None:
    checkout = Checkout.at(CHECKOUT)
    assert len(checkout.travel_prompt) == 14_966
    assert checkout.travel_prompt.startswith("You are a top-tier travel planning expert.")
    assert len(travel_tools(CHECKOUT).schemas) == 9
