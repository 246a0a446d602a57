"""docs/environments.md: its example works, its keys are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_tokenizer import chat_tokenizer

from opd_ray.config.load import config_from
from opd_ray.data.prompts import PromptFeed
from opd_ray.environments.parsers.registry import parser_names
from opd_ray.environments.tool_class import ToolClass
from opd_ray.preflight.environments import section_problems

PAGE = (Path(__file__).parents[3] / "docs" / "environments.md").read_text()
MODELS = {"student": {"path": "none"}, "teacher": {"path": "none"}}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_is_an_environment() -> None:
    (code,) = blocks("python")
    made: dict[str, Any] = {}
    exec(code, made)
    inventory = ToolClass(made["Inventory"]())
    row = {"prompt": [{"role": "user", "content": "Which?"}], "order": 7}
    assert inventory.reset(row) == [{"role": "user", "content": "Which? There are boxes 0 to 4."}]
    assert [tool["function"]["name"] for tool in inventory.tools] == ["weigh"]
    assert 0 <= inventory.call_tool("weigh", {"box": 4}) < 100
    assert inventory.verify([]) == {"reward": 1.0}


@pytest.mark.parametrize("block", blocks("yaml"))
def test_its_configurations_have_keys_that_there_are(block: str) -> None:
    values = yaml.safe_load(block)
    assert section_problems(config_from({**MODELS, **values}, [], "docs")) == []


def test_the_rows_of_the_example_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (code,), (rows,) = blocks("python"), blocks("json")
    (tmp_path / "inventory.py").write_text(code)
    (tmp_path / "orders.jsonl").write_text(rows)
    values = {**MODELS, **yaml.safe_load(blocks("yaml")[0])}
    config = config_from(values, ["rollout.prompts_per_step=2"], "docs")
    first, second = PromptFeed.load(config, chat_tokenizer()).batch(0, 2)
    assert first.episode is not None
    assert second.episode is not None
    assert {first.episode.row["order"], second.episode.row["order"]} == {7, 8}


def test_its_keys_endings_and_parsers() -> None:
    config = config_from(MODELS, [], "docs")
    named = set(re.findall(r"`environment\.(\w+)[`:]", PAGE))
    assert len(named) > 9
    assert [name for name in named if not hasattr(config.environment, name)] == []
    assert [name for name in parser_names() if f"| `{name}`" not in PAGE] == []
