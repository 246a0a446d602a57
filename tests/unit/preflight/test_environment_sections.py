"""Environments that no run can have are refused with key, value and remedy; nothing is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opd_ray.config.environment import EnvironmentSettings
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError
from opd_ray.preflight.config import check_evaluation, config_problems
from opd_ray.preflight.environments import (
    environment_problems,
    making_problems,
    section_problems,
    without_prompts,
)

WORLDS = '''
class World:
    def __init__(self, size=1):
        raise AssertionError("nothing is made before a run")

    def look(self) -> str:
        """Looks."""
        return ""

class BadParser:
    def __init__(self):
        raise ValueError("no grammar")

broken = 5
'''


@pytest.fixture(autouse=True)
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_worlds.py").write_text(WORLDS)
    monkeypatch.syspath_prepend(tmp_path)


def config_of(environments: dict[str, Any] | None = None, **main: Any) -> Config:
    return Config(environment=EnvironmentSettings(**main), environments=environments or {})


def found(environments: dict[str, Any] | None = None, **main: Any) -> list[str]:
    return list(environment_problems(config_of(environments, **main)))


def test_nothing_is_wrong() -> None:
    assert found() == []
    assert found(path="some_worlds:World", arguments={"size": 3}) == []
    assert found({"a": {"path": "some_worlds:World", "arguments": {"size": 2}}}) == []
    assert found({"a": {"path": None}}, path="some_worlds:World", arguments={"size": 3}) == []


def test_numbers_out_of_range_are_told_once() -> None:
    own = {"a": {"max_turns": 0}, "b": {"parser": "hermes"}}
    assert found(own, call_timeout_s=0.0, max_calls=-1) == [
        "environment.max_calls = -1: must be at least 0",
        "environment.call_timeout_s = 0.0: must be above 0",
        "environments.a.max_turns = 0: must be at least 1",
    ]


def test_paths_and_arguments() -> None:
    (text,) = found(path="no_such_worlds:World")
    assert text.startswith("environment.path = 'no_such_worlds:World' cannot be imported")
    (text,) = found({"a": {"path": "some_worlds:broken"}})
    assert text.startswith("environments.a.path = 'some_worlds:broken' cannot be called")
    (text,) = found({"a": {"arguments": {"colour": 1}}}, path="some_worlds:World")
    assert text.startswith("environments.a.arguments = {'colour': 1}: some_worlds:World takes")
    (text,) = found(arguments={"size": 1})
    assert text == (
        "environment.arguments = {'size': 1} with environment.path = null: there is no class that "
        "takes them; name it, or take them out"
    )
    # What is inherited is told of the section that has it.
    (text,) = found({"a": {"max_turns": 3}}, path="no_such_worlds:World")
    assert text.startswith("environment.path")


def test_parsers() -> None:
    (text,) = found(path="some_worlds:World", parser="hermse")
    assert text.startswith(
        "environment.parser = 'hermse' is unknown: use one of hermes, llama3_json"
    )
    (text,) = found({"a": {"path": "some_worlds:World", "parser": "some_worlds:World"}})
    assert "environments.a.parser = 'some_worlds:World': AssertionError" in text
    (text,) = found(path="some_worlds:World", parser="some_worlds:broken")
    assert text == (
        "environment.parser = 'some_worlds:broken' cannot be called: name a class without arguments"
    )


def test_what_a_rollout_actor_has_once() -> None:
    own = {"a": {"path": None, "threads": 3, "concurrent_rollouts": 2, "call_timeout_s": 1.0}}
    assert found(own) == [
        "environments.a.call_timeout_s = 1.0: a rollout actor has one number for all of its "
        "environments; set environment.call_timeout_s",
        "environments.a.concurrent_rollouts = 2: a rollout actor has one number for all of its "
        "environments; set environment.concurrent_rollouts",
        "environments.a.threads = 3: a rollout actor has one number for all of its environments; "
        "set environment.threads",
    ]


def test_keys_that_there_are_not() -> None:
    config = config_of({"a": {"max_turn": 3}, "b": {"path": 3, "max_turns": "many"}})
    first, second = section_problems(config)
    assert first.startswith("environments.a: unknown key max_turn: did you mean max_turns?")
    assert second == "environments.b: max_turns = 'many': expected an integer"


def test_a_file_name_that_the_command_line_took_apart() -> None:
    _, hint = section_problems(config_of({"rows": {"jsonl": {"max_turns": 3}}}))
    assert hint == (
        "environments.rows.jsonl: a dot parts keys; for the source rows.jsonl write "
        "environments='{rows.jsonl: {KEY: VALUE}}'"
    )


def test_a_config_with_such_problems_is_refused() -> None:
    demo = load_config("demo")
    unclear = replace(demo, environments={"a": {"max_turn": 3}})
    assert config_problems(unclear) == section_problems(unclear)
    with pytest.raises(ConfigError, match="unknown key max_turn"):
        check_evaluation(unclear)
    elsewhere = replace(demo, environment=EnvironmentSettings(path="no_such_worlds:World"))
    (text,) = config_problems(elsewhere)
    assert "no_such_worlds" in text
    with pytest.raises(ConfigError, match="no_such_worlds"):
        check_evaluation(elsewhere)


def test_what_cannot_be_made_is_told_once() -> None:
    raises = {"path": "some_worlds:World", "arguments": {"size": 2}}
    own = {"a": {"max_turns": 3}, "b": {"path": None}, "c": raises, "d": raises}
    first, second = making_problems(config_of(own, path="some_worlds:World"))
    said = "path = 'some_worlds:World': AssertionError: nothing is made before a run (/"
    assert first.startswith(f"environment.{said}")
    assert second.startswith(f"environments.c.{said}")
    reference = "opd_ray.environments.reference_table:ReferenceTable"
    assert making_problems(config_of({"b": {"path": None}}, path=reference)) == []


def test_a_source_that_no_prompt_has() -> None:
    config = config_of({"a.jsonl": {"max_turns": 3}, "b.jsonl": {"max_turns": 4}})
    assert without_prompts(config, ["a.jsonl", "c.jsonl"]) == [
        "environments.b.jsonl: no prompt of data or of a task has this source; there is 'a.jsonl', "
        "'c.jsonl': correct the name, or take the environment out"
    ]
    assert without_prompts(config, ["a.jsonl", "b.jsonl"]) == []
