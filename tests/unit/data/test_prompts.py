"""Which held-out prompts the divergence is measured on, and whether any is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from opd_ray.config.data import DataKind, DataSettings
from opd_ray.config.schema import Config, EvalTask, RolloutSettings
from opd_ray.data.prompts import HeldOutTask, Prompt, PromptFeed, divergence_prompts
from opd_ray.data.rows import DataError
from opd_ray.models.pairs.demo import character_tokenizer
from opd_ray.preflight.prompts import repeated_problems

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


def feed(file: Path, *texts: str, limit: int | None = None) -> PromptFeed:
    """Training prompts of these texts."""
    file.write_text("".join(json.dumps({"prompt": text, "answer": "0"}) + "\n" for text in texts))
    data = DataSettings(kind=DataKind.jsonl, path=str(file), limit=limit)
    config = Config(data=data, rollout=RolloutSettings(prompts_per_step=1))
    return PromptFeed.load(config, character_tokenizer())


def problems(name: str, *texts: str) -> HeldOutTask:
    ids = [np.array(character_tokenizer()(text)["input_ids"], np.int32) for text in texts]
    prompts = [Prompt(f"{name}{n}", of_one, of_one) for n, of_one in enumerate(ids)]
    return HeldOutTask(EvalTask(name=name), cast(Any, None), prompts, ["0"] * len(texts))


def test_problems_that_are_trained_on_are_counted_by_task(tmp_path: Path) -> None:
    prompts = feed(tmp_path / "rows.jsonl", "1+2=", "2+3=", "1+2=", "4+4=", "9+9=", limit=3)
    # The last of the training prompts lies beyond the limit; a beginning of one is none of them.
    tasks = [
        problems("some", "2+3=", "5+5=", "4+4=", "9+9=", "1+2"),
        problems("none", "5+5=", "9+9="),
    ]
    assert [note.split(" problems")[0] for note in repeated_problems(prompts, tasks)] == [
        "eval task 'some': 2 of its 5"
    ]


def test_looking_for_repeated_problems_reads_no_row_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    prompts = feed(file, "1+2=", "2+3=")
    file.write_text("")
    assert prompts.shared_with(problems("all", "1+2=").prompts) == 1
