"""The environment of reference tables: what its tool answers and when a rollout succeeds."""

from __future__ import annotations

from typing import Any

import pytest

from opd_ray.environments.environment import Environment, ToolResult
from opd_ray.environments.reference_table import ReferenceTable

QUESTION = {
    "role": "user",
    "content": "Table 48213: start at C and follow next twice; total of price ?",
}
ROW = {
    "prompt": [QUESTION],
    "table": 48213,
    "start": "C",
    "along": "next",
    "hops": 2,
    "column": "price",
}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"row": "C"}}}


def world() -> ReferenceTable:
    made = ReferenceTable()
    assert made.reset(ROW) == [QUESTION]
    return made


def said(content: str, **more: Any) -> list[dict[str, Any]]:
    return [QUESTION, {"role": "assistant", "content": content, **more}]


def test_it_is_an_environment_with_one_tool() -> None:
    made = world()
    assert isinstance(made, Environment)
    assert [tool["function"]["name"] for tool in made.tools] == ["look_up"]
    assert made.tools[0]["function"]["parameters"]["required"] == ["row"]


def test_the_tool_shows_rows_of_its_table() -> None:
    made = world()
    shown = made.call_tool("look_up", {"row": "H"})
    assert shown == ToolResult("H next E back I price 74 weight 41", done=False)
    assert made.call_tool("look_up", {"row": "0"}).text == "no row 0"


@pytest.mark.parametrize("arguments", [{}, {"name": "C"}, {"row": "C", "column": "price"}])
def test_other_arguments_are_the_students_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give look_up one argument, row"):
        world().call_tool("look_up", arguments)


def test_success_is_the_total_in_the_closing_turn() -> None:
    made = world()
    assert made.verify(said("121+64=185"))["success"] == 1.0
    assert made.verify(said("121+64=184"))["success"] == 0.0
    assert made.verify(said("121+64=185", tool_calls=[CALL]))["success"] == 0.0
    assert made.verify([QUESTION])["success"] == 0.0
    result = {"role": "tool", "name": "look_up", "content": "185"}
    assert made.verify([*said("", tool_calls=[CALL]), result])["success"] == 0.0


def test_found_is_the_share_of_the_chain_that_was_looked_up() -> None:
    made = world()
    assert made.verify(said("185"))["found"] == 0.0
    for row in ("C", "C", "A", "E"):
        made.call_tool("look_up", {"row": row})
    assert made.verify(said("185"))["found"] == pytest.approx(2 / 3)
    made.call_tool("look_up", {"row": "H"})
    assert made.verify(said("185"))["found"] == 1.0
    made.reset(ROW)
    assert made.verify(said("185"))["found"] == 0.0
