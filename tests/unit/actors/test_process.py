"""The environment of an actor's process, by its settings."""

from __future__ import annotations

import pytest

from actors.process import trainer_environment, vllm_environment
from opd_ray.config.schema import TrainerSettings


@pytest.mark.parametrize(("threads", "set_to"), [(0, "1"), (3, "3")])
def test_threads_that_no_plan_has_filled_in_are_one(threads: int, set_to: str) -> None:
    assert vllm_environment(threads)["OMP_NUM_THREADS"] == set_to
    assert trainer_environment(TrainerSettings(threads=threads))["OMP_NUM_THREADS"] == set_to
