"""Classes whose public methods are the tools: which they are, what reset takes, what comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from trl_classes import Level, Shop

from opd_ray.environments.environment import Environment, Responds, ToolResult
from opd_ray.environments.tool_class import ToolClass, as_tool_result, tool_schemas
from opd_ray.errors import ConfigError

ROW = {"prompt": [{"role": "user", "content": "Buy tea."}], "budget": 5, "rollout_seed": 11}


def described(**arguments: str) -> str:
    """A docstring."""
    lines = "".join(f"\n    {name}: {text}" for name, text in arguments.items())
    return f"Does.\n\nArgs:{lines}\n"


def test_functions_and_static_methods_are_tools_inherited_ones_too() -> None:
    shop = ToolClass(Shop())
    assert isinstance(shop, Environment)
    assert not isinstance(shop, Responds)
    assert [t["function"]["name"] for t in shop.tools] == ["weigh", "buy", "order", "convert"]
    assert shop.tools[1] == {
        "type": "function",
        "function": {
            "name": "buy",
            "description": "Buys an item.",
            "parameters": {
                "type": "object",
                "properties": {
                    "item": {"type": "string", "description": "its name."},
                    "count": {"type": "integer", "description": "how often."},
                },
                "required": ["item"],
            },
            "return": {"type": "string", "description": "What was bought."},
        },
    }


def test_calls_reach_the_instance() -> None:
    made = Shop()
    shop = ToolClass(made)
    shop.reset(ROW)
    assert shop.call_tool("buy", {"item": "tea", "count": 2}) == "bought 2 tea"
    assert made.calls == 1
    assert shop.call_tool("convert", {"amount": 1.5}) == {"dollars": 3.0}
    assert asyncio.run(shop.call_tool("order", {"item": "tea"})) == "ordered tea"
    assert shop.call_tool("weigh", {"item": "tea"}) == 3
    assert shop.verify([]) == {"reward": 2.0}
    assert shop.close() is None
    with pytest.raises(TypeError):
        shop.call_tool("buy", {"thing": "tea"})


def test_reset_gets_every_column_and_its_text_ends_the_users_message() -> None:
    made = Shop()
    row = {**ROW, "prompt": [{"role": "system", "content": "S"}, *ROW["prompt"]]}
    messages = ToolClass(made).reset(row)
    assert messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Buy tea.\nBudget: 5"},
    ]
    assert made.row == row
    assert row["prompt"][1]["content"] == "Buy tea."  # other rollouts read the same row


def test_reset_is_given_only_what_it_takes() -> None:
    made = Level()
    row = {**ROW, "level": 3}
    assert ToolClass(made).reset(row) == ROW["prompt"]
    assert (made.level, made.seed) == (3, 11)
    ToolClass(made).reset({"prompt": ROW["prompt"], "level": 4})
    assert (made.level, made.seed) == (4, 0)
    with pytest.raises(ConfigError) as error:
        ToolClass(Level()).reset(ROW)
    assert "Level.reset needs level, which the prompt's row does not have" in str(error.value)
    assert "it has prompt, budget, rollout_seed" in str(error.value)


@pytest.mark.parametrize(
    ("added", "content"),
    [
        ([{"type": "text", "text": " a"}, {"type": "text", "text": "b"}], "Buy tea. ab"),
        ("", "Buy tea."),
        (None, "Buy tea."),
    ],
)
def test_what_reset_may_return(added: Any, content: str) -> None:
    class Late(Level):
        async def reset(self) -> Any:
            return added

    messages = asyncio.run(ToolClass(Late()).reset(ROW))
    assert messages == [{"role": "user", "content": content}]


def test_what_reset_may_not_return() -> None:
    class Numbers(Level):
        def reset(self) -> Any:
            return 5

    class Words(Level):
        def reset(self) -> Any:
            return "more"

    class Pictures(Level):
        def reset(self) -> Any:
            return [{"type": "image", "image": 0}]

    with pytest.raises(ConfigError, match=r"reset\(\) returned a int: return text or None"):
        ToolClass(Numbers()).reset(ROW)
    with pytest.raises(TypeError, match="type 'image': students read text alone"):
        ToolClass(Pictures()).reset(ROW)
    with pytest.raises(ConfigError, match=r"no message of the prompt is the user's"):
        ToolClass(Words()).reset({"prompt": [{"role": "system", "content": "S"}]})
    parts = {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Q "}]}]}
    assert ToolClass(Words()).reset(parts) == [{"role": "user", "content": "Q more"}]


def test_a_reward_may_come_later_or_not_at_all() -> None:
    class Judged(Level):
        async def get_reward(self) -> float | None:
            return 0.5

    class Unjudged(Level):
        def get_reward(self) -> None:
            return None

    class Wordy(Level):
        def get_reward(self) -> str:
            return "good"

    assert asyncio.run(ToolClass(Judged()).verify([])) == {"reward": 0.5}
    assert ToolClass(Unjudged()).verify([]) == {}
    assert ToolClass(Level()).verify([]) == {}
    with pytest.raises(ConfigError, match=r"get_reward\(\) returned 'good'"):
        ToolClass(Wordy()).verify([])


def test_a_class_that_responds_and_verifies() -> None:
    class Guide(Level):
        def respond(self, text: str) -> list[dict[str, str]]:
            return [{"role": "user", "content": f"{text}?"}]

        def verify(self, messages: list[Any]) -> dict[str, float]:
            return {"length": len(messages)}

    guide = ToolClass(Guide())
    assert isinstance(guide, Responds)
    assert guide.respond("so")[0]["content"] == "so?"
    assert guide.verify([1, 2]) == {"length": 2}
    assert [t["function"]["name"] for t in guide.tools] == ["look"]


def test_a_tool_with_the_name_of_something_else_is_refused() -> None:
    class Verifies(Level):
        def verify(self, answer: str, unit: str) -> str:
            """Is it right?"""
            return "yes"

    class Closes(Level):
        def close(self, door: str) -> str:
            """Closes a door."""
            return "closed"

    with pytest.raises(ConfigError) as error:
        ToolClass(Verifies())
    assert "Verifies.verify(answer: 'str', unit: 'str') -> 'str' is no tool" in str(error.value)
    assert "a run calls it as verify(messages)" in str(error.value)
    with pytest.raises(ConfigError, match=r"a run calls it as close\(\)"):
        ToolClass(Closes())


def test_a_class_without_anything_to_do_is_refused() -> None:
    class Empty:
        def reset(self) -> None: ...

    with pytest.raises(ConfigError, match="Empty has no public method that could be a tool"):
        ToolClass(Empty())


def test_hints_and_descriptions_are_needed() -> None:
    class NoHint:
        def go(self, where) -> str:
            """Goes."""
            return where

    class NoWords:
        def go(self, where: str) -> str:
            """Goes."""
            return where

    for made in (NoHint(), NoWords()):
        with pytest.raises(ConfigError) as error:
            ToolClass(made)
        assert "tool 'go' (" in str(error.value)
        assert "give every argument a type hint, and a line under Args:" in str(error.value)


def test_a_tool_that_ends_the_rollout_has_a_schema() -> None:
    class Ends:
        def answer(self, text: str) -> ToolResult | str:
            return ToolResult(text, done=True)

        answer.__doc__ = described(text="the answer.")

    (schema,) = tool_schemas(Ends)
    assert schema["function"]["parameters"]["required"] == ["text"]
    assert "return" not in schema["function"]
    assert ToolClass(Ends()).call_tool("answer", {"text": "a"}) == ToolResult("a", done=True)


@pytest.mark.parametrize(
    ("answered", "text"),
    [
        ("as it is", "as it is"),
        ({"a": [1, True, None]}, '{"a": [1, true, null]}'),
        (None, "null"),
        ("ü", "ü"),
        (["ü"], '["ü"]'),
        ([], "[]"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "road"}], '[{"type": "road"}]'),
    ],
)
def test_results_as_text(answered: Any, text: str) -> None:
    assert as_tool_result(answered) == ToolResult(text)


def test_results_that_are_no_text() -> None:
    for answered in (object(), {1, 2}, b"x"):
        with pytest.raises(TypeError):
            as_tool_result(answered)
    with pytest.raises(TypeError, match="a part of type 'image': students read text alone"):
        as_tool_result([{"type": "text", "text": "a"}, {"type": "image", "image": 1}])
