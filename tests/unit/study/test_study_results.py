"""A cell's account where it was evaluated more often than before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd_ray.config.load import load_config
from opd_ray.study.cells import Cell, study_cells
from opd_ray.study.results import StudyFolder, cell_result

STEP = {"train/loss": 0.5, "rollout/tokens": 100, "seconds/step": 1.5}
# Evaluated before the first step and after the first, second and last.
ROWS = [
    {"step": 0, "eval/kl": 0.5, "eval/heldout/accuracy": 0.125, "seconds/eval": 1.0},
    {"step": 1, "train/kept_tokens": 10, **STEP, "eval/kl": 0.4, "eval/heldout/accuracy": 0.75},
    {"step": 2, "train/kept_tokens": 20, **STEP, "eval/kl": 0.2, "eval/heldout/accuracy": 0.25},
    {"step": 3, "train/kept_tokens": 40, **STEP},
    {"step": 4, "train/kept_tokens": 80, **STEP, "eval/kl": 0.3, "eval/heldout/accuracy": 0.5},
]
STEP_0 = {"eval/kl": 0.5, "eval/heldout/accuracy": 0.125}
FINAL = {"eval/kl": 0.3, "eval/heldout/accuracy": 0.5}


@pytest.fixture
def cell() -> Cell:
    arms = "study.arms=[{name: a, tip: {rule: random, rho: 0.1}}]"
    (found,) = study_cells(load_config("study", [arms, "study.seeds=[3]"]))
    return found


def test_final_is_the_last_of_several_evaluations(cell: Cell) -> None:
    result = cell_result(cell, ROWS, 9.0)
    assert (result.step_0, result.final) == (STEP_0, FINAL)
    assert (result.tokens_written, result.tokens_trained, result.step_seconds) == (400, 150, 6.0)


def test_a_cell_evaluated_once_began_where_it_ended(cell: Cell) -> None:
    result = cell_result(cell, ROWS[:1], 9.0)
    assert result.step_0 == result.final == STEP_0


def test_the_account_on_disk_says_the_same(cell: Cell, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    path = folder.metrics("a", 3)
    path.parent.mkdir(parents=True)
    # Training and evaluation of a step are lines of their own.
    lines = []
    for row in ROWS:
        evaluation = {key: row[key] for key in row if key == "step" or key.startswith("eval/")}
        rest = {key: row[key] for key in row if key == "step" or key not in evaluation}
        lines += [json.dumps(part) for part in (rest, evaluation) if len(part) > 1]
    path.write_text("\n".join(lines) + "\n")
    folder.finish(cell, 9.0)
    (result,) = folder.results([cell])
    assert (result.step_0, result.final) == (STEP_0, FINAL)
