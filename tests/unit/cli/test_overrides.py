"""Which of several command-line overrides of one key counts."""

from __future__ import annotations

import pytest

from opd_ray.cli import main
from opd_ray.config.load import config_from, load_config


def test_the_last_override_of_a_key_wins() -> None:
    config = load_config("demo", ["run.steps=3", "tip.rho=0.25", "run.steps=5", "tip.rho=0.125"])
    assert (config.run.steps, config.tip.rho) == (5, 0.125)


def test_a_later_override_may_change_part_of_an_earlier_one() -> None:
    tasks = "eval.tasks=[{name: sums, problems: 8}]"
    values = {"student": {"path": "s"}, "teacher": {"path": "t"}}
    config = config_from(values, [tasks, "eval.tasks[0].problems=9"], "here")
    assert [(task.name, task.problems) for task in config.eval.tasks] == [("sums", 9)]


def test_the_last_one_wins_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "run.seed=11", "--print-config", "run.seed=13", "run.seed=12"]) == 0
    assert "\n  seed: 12\n" in capsys.readouterr().out
