"""What a run learns of an environment before any model loads: tools, and the columns it needs."""

from __future__ import annotations

from typing import Any

import pytest

from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings
from opd_ray.environments.by_source import RunEnvironments
from opd_ray.errors import ConfigError


class Shelf:
    def reset(self, level: int, prompt: Any, hint: str = "", **others: Any) -> None:
        return None

    def look(self) -> str:
        """Looks."""
        return "x"


class Whole:
    tools: Any = ({"type": "function", "function": {"name": "look", "parameters": {}}},)

    def reset(self, row: Any) -> Any:
        return row["prompt"]

    def call_tool(self, name: str, arguments: Any) -> str:
        return "x"

    def verify(self, messages: Any) -> dict[str, float]:
        return {}

    def close(self) -> None:
        return None


class Flat(Whole):
    tools: Any = ({"name": "look", "parameters": {}},)


class ByName(Whole):
    tools: Any = frozenset({"look"})


def environments(name: str) -> RunEnvironments:
    return RunEnvironments(
        EnvironmentSet(EnvironmentSettings(path=f"{__name__}:{name}"), {"sums": ALONE})
    )


ALONE = EnvironmentSettings()


def test_columns_are_what_reset_cannot_do_without() -> None:
    assert environments("Shelf").columns_of("any") == ["level", "prompt"]
    assert environments("Shelf").columns_of("sums") == ()
    assert environments("Whole").columns_of("any") == ()


def test_tools_are_schemas() -> None:
    (tool,) = environments("Whole").tools_of("any") or ()
    assert tool["function"]["name"] == "look"
    with pytest.raises(ConfigError, match=r"environment\.path = '.*Flat': tools\[0\] is {'name'"):
        environments("Flat").tools_of("any")
    with pytest.raises(ConfigError, match=r"ByName': tools is a frozenset; expected a l"):
        environments("ByName").tools_of("any")
