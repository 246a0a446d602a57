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
