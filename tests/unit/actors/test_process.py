"""The environment of an actor's process, by its settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import actors
from actors import FOLDER_VARIABLE
from actors.process import (
    compute_reproducibly,
    teacher_environment,
    trainer_environment,
    vllm_environment,
)
from opd_ray.config.schema import TrainerSettings
from opd_ray.config.teacher import TeacherSettings


@pytest.mark.parametrize(("threads", "set_to"), [(0, "1"), (3, "3")])
def test_threads_that_no_plan_has_filled_in_are_one(threads: int, set_to: str) -> None:
    assert vllm_environment(threads)["OMP_NUM_THREADS"] == set_to
    assert trainer_environment(TrainerSettings(threads=threads))["OMP_NUM_THREADS"] == set_to


def test_no_actor_compiles_our_code_at_every_start() -> None:
    for environment in (
        vllm_environment(1),
        trainer_environment(TrainerSettings()),
        teacher_environment(TeacherSettings()),
    ):
        assert environment["PYTHONDONTWRITEBYTECODE"] == ""  # Python takes it as not set


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.usefixtures("torch_as_it_was")
def test_torch_is_told_to_round_the_same_every_time() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    compute_reproducibly()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_a_process_of_a_run_is_in_the_runs_folder_if_its_machine_has_it(tmp_path: Path) -> None:
    """Relative paths of a configuration begin there, whatever folder a running Ray is in."""
    home = str(Path(actors.__file__).parents[1])
    gone = "No such file or directory"
    cases = ((tmp_path, tmp_path, ""), (tmp_path / "gone", Path.cwd(), gone))
    for folder, expected, missing in cases:
        found = subprocess.run(
            [sys.executable, "-c", "import actors, os; print(os.getcwd(), actors.folder_missing)"],
            env={**os.environ, FOLDER_VARIABLE: str(folder), "PYTHONPATH": home},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert found.stdout.strip() == f"{expected} {missing}".strip()
