"""Environments by a prompt's source: what a source has of the section environment, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_ray.config.environment import EnvironmentSettings
from opd_ray.config.load import load_config, to_yaml
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError

MAIN = EnvironmentSettings(
    path="world:World",
    arguments={"size": {"x": 1, "y": 2}, "seed": 3},
    max_turns=4,
    parser="hermes",
)


def test_a_source_differs_in_its_keys_alone() -> None:
    own = {"max_turns": 9, "arguments": {"size": {"y": 5}}}
    config = Config(environment=MAIN, environments={"hard": own})
    assert config.environment_of("hard") == EnvironmentSettings(
        path="world:World", arguments={"size": {"x": 1, "y": 5}, "seed": 3}, max_turns=9
    )
    assert config.environment_of("easy") is MAIN
    assert config.environment_set.of("hard")[0] == "environments.hard"
    assert config.environment_set.of("easy") == ("environment", MAIN)
    assert MAIN.arguments == {"size": {"x": 1, "y": 2}, "seed": 3}


def test_arguments_belong_to_a_class() -> None:
    config = Config(
        environment=MAIN,
        environments={
            "other": {"path": "moon:Moon"},
            "more": {"path": "moon:Moon", "arguments": {"craters": 2}},
            "same": {"path": "world:World"},
            "single": {"path": None},
        },
    )
    assert config.environment_of("other").arguments == {}
    assert config.environment_of("other").max_turns == 4
    assert config.environment_of("more").arguments == {"craters": 2}
    assert config.environment_of("same") == MAIN
    single = config.environment_of("single")
    assert (single.path, single.arguments) == (None, {})


def test_whether_any_prompt_has_one() -> None:
    nothing = Config()
    assert not nothing.environment_set.any
    assert nothing.environment_of("").path is None
    assert Config(environment=MAIN).environment_set.any
    assert Config(environments={"one": {"path": "world:World"}}).environment_set.any
    assert not Config(environments={"one": {"max_turns": 3}}).environment_set.any


def test_it_is_resolved_once() -> None:
    config = Config(environments={"one": {"max_turns": 3}})
    assert config.environment_of("one") is config.environment_of("one")


def test_from_a_file_and_back(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "inherit: demo\n"
        "environment:\n  path: world:World\n  call_timeout_s: 5\n"
        "environments:\n"
        "  a.jsonl:\n    max_turns: 007\n    parser: llama3_json\n"
        "    arguments: {pattern: '\\${x}'}\n"
    )
    config = load_config(str(file), ["environments.b.path=null"])
    found = config.environment_of("a.jsonl")
    assert (found.max_turns, found.parser, found.call_timeout_s) == (7, "llama3_json", 5.0)
    assert found.arguments == {"pattern": "${x}"}
    assert config.environment_of("b").path is None
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(str(again)).environment_set == config.environment_set


def test_a_misspelt_key_of_the_section_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"environment\.max_turn.*environment\.max_turns"):
        load_config("demo", ["environment.max_turn=3"])
