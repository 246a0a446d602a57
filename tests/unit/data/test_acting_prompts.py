"""Prompts of sources with environments: tools in front, all columns, and who has none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from chat_tokenizer import chat_tokenizer
from pyarrow import parquet

from opd_ray.config.data import DataSettings
from opd_ray.config.environment import EnvironmentSettings
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config, EvalTask
from opd_ray.data.prompts import PromptFeed, held_out_tasks, own_teacher_prompts
from opd_ray.data.rows import DataError

TOKENIZER = chat_tokenizer()
ROWS = [
    {"prompt": "One?", "answer": "1", "from": "shop", "shelf": [3, 4]},
    {"prompt": "Two?", "answer": "2", "from": "sums", "shelf": [5]},
]


class Shop:
    def look(self) -> str:
        """Looks."""
        return "x"


class Shelves(Shop):
    def reset(self, prompt: list[Any], shelf: list[int], level: int, most: int = 3) -> None:
        return None


def config(folder: Path, kind: str = "jsonl", **data: Any) -> Config:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    found = load_config("demo", ["eval.tasks=[]", "rollout.prompts_per_step=2"])
    settings = replace(
        DataSettings(kind=kind, path=str(path), shuffle=False, system_prompt="Be brief."), **data
    )
    settings.fields.source = "from"
    return replace(
        found,
        data=settings,
        environment=EnvironmentSettings(),
        environments={"shop": {"path": f"{__name__}:Shop"}},
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_only_prompts_of_its_source_show_tools_and_bring_their_rows(
    tmp_path: Path, kind: str
) -> None:
    one, two = PromptFeed.load(config(tmp_path, kind), TOKENIZER).batch(0, 2)
    shown, plain = (TOKENIZER.decode(prompt.student_ids) for prompt in (one, two))
    assert shown.startswith(
        '<|im_start|>system\nTools:\n{"type": "function", "function": {"name": "lo'
    )
    assert shown.endswith("<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n")
    assert "Tools" not in plain
    assert two.episode is None
    assert one.episode is not None
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}]
    assert one.episode.row == {**ROWS[0], "prompt": asked}


def test_options_of_the_template_come_along(tmp_path: Path) -> None:
    found = config(tmp_path, chat_template_kwargs={"mood": "good"})
    one, _ = PromptFeed.load(found, TOKENIZER).batch(0, 2)
    assert one.episode is not None
    assert one.episode.options == {"mood": "good"}


def test_held_out_problems_act_too(tmp_path: Path) -> None:
    found = config(tmp_path)
    task = EvalTask(name="shop", task="environment", data=found.data)
    found = replace(found, eval=replace(found.eval, tasks=[task]))
    (held_out,) = held_out_tasks(found, TOKENIZER)
    assert [prompt.episode is not None for prompt in held_out.prompts] == [True, False]


def test_what_a_conversation_of_turns_cannot_begin_with(tmp_path: Path) -> None:
    bare = chat_tokenizer()
    bare.chat_template = None
    found = config(tmp_path, system_prompt=None)
    with pytest.raises(
        DataError, match=r"rows\.jsonl, line 1: has an environment, and no chat temp"
    ):
        PromptFeed.load(found, bare)
    begun = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "It"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROWS[0], "prompt": begun}) + "\n")
    with pytest.raises(DataError, match="ends with a message of the assistant"):
        PromptFeed.load(
            replace(found, rollout=replace(found.rollout, prompts_per_step=1)), TOKENIZER
        )


def test_teachers_read_the_students_prompt_but_where_the_row_has_another(tmp_path: Path) -> None:
    one, two = PromptFeed.load(config(tmp_path), TOKENIZER).batch(0, 2)
    assert own_teacher_prompts([one, two]) == {}
    hinted = replace(two, teacher_ids=np.array([1, 2], np.int32))
    found = own_teacher_prompts([one, hinted])
    assert list(found) == [two.key]
    assert found[two.key].tolist() == [1, 2]


def sums_and_shops(folder: Path, sources: list[str]) -> PromptFeed:
    """Rows of one prompt, each with another shelf."""
    found = config(folder)
    found.data.fields.answer = None
    rows = [{"prompt": "Which?", "from": one, "shelf": n} for n, one in enumerate(sources)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptFeed.load(
        replace(found, rollout=replace(found.rollout, prompts_per_step=1)), TOKENIZER
    )


def test_rows_of_one_prompt_are_problems_of_their_own_to_an_environment(tmp_path: Path) -> None:
    feed = sums_and_shops(tmp_path, ["shop", "shop", "sums", "sums", "shop"])
    rows = [prompt.episode.row["shelf"] for prompt in feed.batch(0, 4) if prompt.episode]
    assert rows == [0, 1, 4]
    assert str(feed).startswith("4 prompts of 5 rows, 1 duplicate")
    other = sums_and_shops(tmp_path, ["shop", "shop", "sums", "sums", "sums"])
    assert other.identity != feed.identity


def test_equal_rows_are_one_problem_to_an_environment_too(tmp_path: Path) -> None:
    found = config(tmp_path)
    (tmp_path / "rows.jsonl").write_text((json.dumps(ROWS[0]) + "\n") * 2)
    feed = PromptFeed.load(
        replace(found, rollout=replace(found.rollout, prompts_per_step=1)), TOKENIZER
    )
    assert str(feed).startswith("1 prompts of 2 rows, 1 duplicate")


def test_held_out_problems_are_trained_on_where_their_columns_are_too(tmp_path: Path) -> None:
    feed = sums_and_shops(tmp_path, ["shop", "shop"])
    first, second = feed.batch(0, 2)
    assert second.episode is not None
    other = replace(second, episode=replace(second.episode, row={**second.episode.row, "shelf": 7}))
    assert feed.shared_with([first, second]) == 2
    assert feed.shared_with([other]) == 0


def test_rows_without_a_column_that_their_environment_needs_are_named(tmp_path: Path) -> None:
    found = config(tmp_path)
    found = replace(found, environments={"shop": {"path": f"{__name__}:Shelves"}})
    with pytest.raises(DataError, match="1 of 2 rows cannot be used") as refused:
        PromptFeed.load(found, TOKENIZER)
    assert (
        "rows.jsonl, line 1: its environment's reset needs level, which it does not have; it has "
        "prompt, answer, from, shelf: name the column so in the data" in str(refused.value)
    )
