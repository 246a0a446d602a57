"""docs/config.md and --print-config: every key with its comment, read from the dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from opd_ray.cli import main
from opd_ray.config.keys import all_keys
from opd_ray.config.load import load_config
from opd_ray.config.ranges import at_least
from opd_ray.config.reference import commented_yaml, field_comments, sections, to_markdown
from opd_ray.config.schema import Config
from opd_ray.on_resume import TOLD

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


@dataclass
class Example:
    """Not a comment."""

    # One line.
    first: int = field(default=1, metadata=at_least(1) | TOLD)
    # Two lines, of which
    # this is the second.
    second: str = "a # b"

    # Apart from what follows.

    third: bool = False


def test_a_fields_comment_is_what_stands_right_above_it() -> None:
    assert field_comments(Example) == {
        "first": "One line.",
        "second": "Two lines, of which this is the second.",
        "third": "",
    }


def test_the_page_is_that_of_the_code() -> None:
    """If not: python -m opd_ray.config.reference > docs/config.md"""
    assert PAGE.read_text() == to_markdown()


def test_every_key_is_there_with_type_default_and_comment() -> None:
    found = {}
    for section, keys in sections():
        for key in keys:
            if not key.kind.startswith("keys of their own"):
                found[f"{section}.{key.name}" if section else key.name] = key
    assert {*found} == {*all_keys(Config)}
    assert [name for name, key in found.items() if not key.comment] == []
    assert [name for name, key in found.items() if not key.kind or not key.default] == []
    rank = found["trainer.ranks"]
    assert (rank.kind, rank.default, rank.on_resume) == ("an integer, at least 1", "1", "told")
    schedule = found["trainer.lr_schedule"]
    assert (schedule.kind, schedule.default) == ("one of constant, linear, cosine", "cosine")
    assert found["trainer.min_lr_ratio"].kind == "a number, in [0, 1]"


@pytest.mark.parametrize("name", ["demo", "study_tools", "tip_deepplanning_14b"])
def test_a_printed_configuration_is_the_same_with_its_comments(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    text = commented_yaml(config)
    path = tmp_path / "printed.yaml"
    path.write_text(text)
    assert load_config(path) == config
    assert max(map(len, text.splitlines())) <= 100 or "://" in text or "{prompt}" in text


def test_words_that_look_like_yaml_survive_between_comments(tmp_path: Path) -> None:
    tricky = "a # b\n- c: d\n\n  ${x}\ttab 'quoted' \"twice\""
    config = load_config(
        "demo", {"data.system_prompt": tricky.replace("${", r"\${"), "tip.rule": "random"}
    )
    path = tmp_path / "printed.yaml"
    path.write_text(commented_yaml(config))
    again = load_config(path)
    assert again == config
    assert again.data.system_prompt == tricky


def test_the_command_prints_comments_above_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "demo", "--print-config", "trainer.ranks=3"]) == 0
    printed = capsys.readouterr().out
    assert "  # Data-parallel trainer processes.\n  ranks: 3\n" in printed
    assert "    # Name under which its figures appear.\n  - name: heldout\n" in printed
