"""Environments by import path: what is made of a class, a function, and of what is neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from opd_ray.environments.environment import Message
from opd_ray.environments.load import environment_factory
from opd_ray.environments.tool_class import ToolClass
from opd_ray.errors import ConfigError
from opd_ray.user_code import UserCodeError

HERE = "test_environment_factory"
KEY = "environments.a.path"
made = 0


class Whole:
    """An environment as it is."""

    tools: Sequence[dict[str, Any]] = ()

    def __init__(self, level: int = 1) -> None:
        global made
        made += 1
        self.level = level

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        return list(row["prompt"])

    def call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        return name

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        return {}

    def close(self) -> None: ...


class Tools:
    """An object whose methods are tools."""

    def __init__(self, level: int = 1) -> None:
        self.level = level

    def look(self) -> int:
        """Looks."""
        return self.level


class HalfWhole:
    def reset(self, row: Any) -> list[Message]:
        return []

    def call_tool(self, name: str, arguments: Any) -> str:
        return name


class Toolless:
    """All but the tools."""

    reset, call_tool = Whole.reset, Whole.call_tool
    verify, close = Whole.verify, Whole.close


class Asks(Toolless):
    @property
    def tools(self) -> Sequence[dict[str, Any]]:
        raise AssertionError("nobody asked for the tools")


class Undescribed:
    def look(self, at: str) -> str:
        return at


class Fails:
    def __init__(self) -> None:
        raise OSError("no such server")

    def look(self) -> str:
        """Looks."""
        return ""


def a_whole(level: int) -> Whole:
    return Whole(level)


def some_tools() -> Tools:
    return Tools(5)


def a_half() -> HalfWhole:
    return HalfWhole()


def a_number() -> int:
    return 5


five = 5


def test_a_class_and_a_function() -> None:
    for name in ("Whole", "a_whole"):
        before = made
        make = environment_factory(f"{HERE}:{name}", {"level": 3}, KEY)
        assert made == before  # nothing is called before a rollout
        one, other = make(), make()
        assert one is not other
        assert type(one).__name__ == "Whole"
        assert one.level == 3


def test_making_one_does_not_ask_for_its_tools() -> None:
    assert isinstance(environment_factory(f"{HERE}:Asks", {}, KEY)(), Asks)


def test_tools_of_a_class_and_of_what_a_function_makes() -> None:
    for name, arguments, level in (("Tools", {"level": 4}, 4), ("some_tools", {}, 5)):
        found = environment_factory(f"{HERE}:{name}", arguments, KEY)()
        assert isinstance(found, ToolClass)
        assert found.call_tool("look", {}) == level


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("Missing", {}, f"{KEY} = '{HERE}:Missing' cannot be imported"),
        ("five", {}, f"{KEY} = '{HERE}:five' cannot be called"),
        ("Whole", {"size": 2}, f"environments.a.arguments = {{'size': 2}}: {HERE}:Whole takes"),
        ("a_whole", {}, "takes (level: 'int') -> 'Whole': missing a required argument: 'level'"),
        ("HalfWhole", {}, "HalfWhole has no method verify, close; an environment has tools"),
        ("Undescribed", {}, f"{KEY} = '{HERE}:Undescribed': tool 'look' (Undescribed.look)"),
    ],
)
def test_what_is_refused_at_once(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        environment_factory(f"{HERE}:{name}", arguments, KEY)
    assert said in str(error.value)


def test_what_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="HalfWhole has no method verify, close"):
        environment_factory(f"{HERE}:a_half", {}, KEY)()
    with pytest.raises(ConfigError, match="int has no public method that could be a tool"):
        environment_factory(f"{HERE}:a_number", {}, KEY)()
    with pytest.raises(ConfigError, match="Toolless has no tools, its list of schemas"):
        environment_factory(f"{HERE}:Toolless", {}, KEY)()
    with pytest.raises(UserCodeError) as error:
        environment_factory(f"{HERE}:Fails", {}, KEY)()
    assert "OSError: no such server (" in str(error.value)
    assert "test_environment_factory.py, line" in str(error.value)
