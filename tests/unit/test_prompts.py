"""Which held-out prompts the divergence is measured on."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from opd_ray.config.schema import EvalTask
from opd_ray.data.prompts import HeldOutTask, Prompt, divergence_prompts
from opd_ray.data.rows import DataError

IDS = np.array([1, 2], np.int32)


def task(name: str, *keys: str) -> HeldOutTask:
    prompts = [Prompt(key, IDS, IDS, source=name) for key in keys]
    return HeldOutTask(EvalTask(name=name), cast(Any, None), prompts, ["0"] * len(keys))


def test_the_first_prompts_task_after_task() -> None:
    found = divergence_prompts([task("a", "x", "y"), task("b", "z")], 3)
    assert [prompt.key for prompt in found] == ["x", "y", "z"]
    assert [prompt.key for prompt in divergence_prompts([task("a", "x", "y")], 1)] == ["x"]


def test_equal_ids_of_two_tasks_are_told_apart() -> None:
    found = divergence_prompts([task("a", "1", "2"), task("b", "2", "3")], 10)
    assert [prompt.key for prompt in found] == ["1", "a/2", "b/2", "3"]
    assert [prompt.source for prompt in found] == ["a", "a", "b", "b"]


def test_without_any_prompt_there_is_none_to_measure_on() -> None:
    with pytest.raises(DataError, match=r"eval.kl_prompts = 4 needs held-out prompts"):
        divergence_prompts([task("a")], 4)
    assert divergence_prompts([], 0) == []
