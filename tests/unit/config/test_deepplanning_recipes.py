"""The configs of the paper's table 7: its settings, its six rows, both teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from deepplanning_data import write_checkout

from opd_ray.cli import main
from opd_ray.config.files import packaged_folder
from opd_ray.config.load import load_config
from opd_ray.deepplanning.checkout import Checkout
from opd_ray.environments.environment import Environment
from opd_ray.environments.load import environment_factory

RECIPES = ("tip_deepplanning_14b", "tip_deepplanning_32b")
# The sixth row is the config itself: soft_or at 0.5.
ROWS = {
    "all": ("all", 0.5),
    "entropy_50": ("entropy_sample", 0.5),
    "entropy_20": ("entropy_sample", 0.2),
    "q3_20": ("q3_only", 0.2),
    "soft_or_20": ("soft_or", 0.2),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_settings_of_the_authors_script(name: str) -> None:
    config = load_config(name)
    rollout, environment = config.rollout, config.environment
    assert config.student.path == "Qwen/Qwen3-1.7B"
    assert config.teacher.path == f"Qwen/Qwen3-{name[-3:].upper()}"
    assert config.trainer.learning_rate == 1e-6
    assert rollout.prompts_per_step * rollout.samples_per_prompt == 256
    assert config.run.steps * rollout.prompts_per_step == 15 * 96
    assert rollout.max_new_tokens == 24_576
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, 0)
    assert (environment.parser, environment.max_turns) == ("hermes", 50)
    (task,) = config.eval.tasks
    assert (task.task, task.samples, task.greedy, task.problems) == ("environment", 16, False, None)
    assert (task.temperature, task.top_p) == (0.6, 0.8)
    assert (config.data.path, task.data.path) == ("deepplanning_train", "deepplanning_heldout")
    for data in (config.data, task.data):
        assert data.chat_template_kwargs == {"enable_thinking": True}
        assert data.max_prompt_tokens == 8192
    assert (config.tip.rule, config.tip.rho) == ("soft_or", 0.5)


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_differs_in_its_rule_and_folder_alone(name: str) -> None:
    base = load_config(name)
    for row, (rule, rho) in ROWS.items():
        config = load_config(f"{name}/{row}")
        assert (config.tip.rule, config.tip.rho) == (rule, rho)
        assert config.run.output_dir == f"outputs/{name}/{row}"
        same = replace(config.tip, rule=base.tip.rule, rho=base.tip.rho)
        assert replace(config, run=base.run, tip=same) == base
    assert base.run.output_dir == f"outputs/{name}/soft_or_50"
    assert {path.stem for path in (packaged_folder() / name).iterdir()} == set(ROWS)


def test_the_teachers_alone_differ() -> None:
    small, large = (load_config(name) for name in RECIPES)
    assert replace(large.teacher, path=small.teacher.path) == small.teacher
    assert replace(large, run=small.run, teacher=small.teacher) == small


def test_the_environment_that_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPD_RAY_DEEPPLANNING", raising=False)
    assert load_config(RECIPES[0]).environment.arguments == {"checkout": "Qwen-Agent"}
    monkeypatch.setenv("OPD_RAY_DEEPPLANNING", str(write_checkout(tmp_path / "c")))
    settings = load_config(RECIPES[0]).environment
    made = environment_factory(str(settings.path), settings.arguments, "environment.path")()
    assert isinstance(made, Environment)
    assert len(made.tools) == len(Checkout.at(tmp_path / "c").travel_tools) == 9


@pytest.mark.parametrize("name", [*RECIPES, f"{RECIPES[0]}/q3_20"])
def test_the_doctor_plans_one_without_models_or_gpus(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_RAY_DATA", str(tmp_path))
    monkeypatch.setenv("OPD_RAY_DEEPPLANNING", str(tmp_path / "c"))
    nodes = ["--cpus", "64", "--memory-gb", "1000", "--gpus", "8", "--gpu-memory-gb", "80"]
    assert main(["doctor", "--config", name, *nodes]) == 0
    text = capsys.readouterr().out
    assert "FAIL" not in text
    assert f"opd-ray prepare deepplanning --from CHECKOUT --out {tmp_path}" in text
    assert "1,720.57 M parameters" in text
    missing = f"environment.arguments.checkout = {tmp_path / 'c'}: there is no such folder; clone"
    assert missing in text
    write_checkout(tmp_path / "c")
    assert main(["doctor", "--config", name, *nodes]) == 0
    assert "environment.arguments.checkout" not in capsys.readouterr().out
