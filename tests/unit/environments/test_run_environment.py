"""What a run learns of an environment before any model loads: tools, and the columns it needs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings
from opd_ray.environments.by_source import RunEnvironments
from opd_ray.errors import ConfigError
from opd_ray.user_code import UserCodeError


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


class Slow(Whole):
    def __init__(self) -> None:
        time.sleep(0.4)


class NeverCloses(Whole):
    def close(self) -> None:
        time.sleep(3)


class ClosesLater(Whole):
    async def close(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0.01)
        CLOSED.append(self)


class Fails(Whole):
    def __init__(self) -> None:
        raise OSError("no store")


CLOSED: list[Any] = []


def environments(name: str) -> RunEnvironments:
    return RunEnvironments(
        EnvironmentSet(
            EnvironmentSettings(path=f"{__name__}:{name}", call_timeout_s=0.1), {"sums": ALONE}
        )
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


def test_one_that_is_never_made_or_closed_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments("Slow").tools_of("any")  # the first may take longer than a call
    begin = time.monotonic()
    assert environments("NeverCloses").tools_of("any")
    assert time.monotonic() - begin < 2.5
    monkeypatch.setattr("opd_ray.environments.by_source._FIRST_SECONDS", 0.2)
    with pytest.raises(ConfigError, match=r"Slow': one was made to be asked .* in 0 s: let it beg"):
        environments("Slow").tools_of("any")


def test_one_that_is_asked_for_its_tools_is_closed_or_named() -> None:
    assert environments("ClosesLater").tools_of("any")
    assert len(CLOSED) == 1
    with pytest.raises(
        UserCodeError, match=r"Fails': OSError: no store \(.*, line \d+, in __init__"
    ):
        environments("Fails").tools_of("any")
