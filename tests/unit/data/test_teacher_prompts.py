"""Prompts that a teacher reads in place of the student's: kept apart, and given to it alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from opd_ray.config.data import DataKind, DataSettings, FieldSettings
from opd_ray.config.schema import Config, EvalSettings, EvalTask, RolloutSettings
from opd_ray.data.load import load_prompts
from opd_ray.data.prompts import PromptFeed, held_out_tasks
from opd_ray.data.rows import PromptRow
from opd_ray.models.pairs.demo import character_tokenizer

TOKENIZER = character_tokenizer()

ROWS = [
    {"prompt": "1+1=", "answer": 2, "shown": "1+1=2,1+1="},
    {"prompt": "1+1=", "answer": 2, "shown": "2-1=1,1+1="},
    {"prompt": "2+1=", "answer": 3, "shown": "1+1=2,1+1="},
    {"prompt": "1+1=", "answer": 2, "shown": "1+1=2,1+1="},  # the first one again
]


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    fields = FieldSettings(teacher_prompt="shown")
    return DataSettings(kind=DataKind.jsonl, path=str(path), fields=fields, shuffle=False)


def text(ids: np.ndarray) -> str:
    return TOKENIZER.decode(ids.tolist())


def test_rows_that_differ_in_the_teachers_prompt_alone_both_stay(data: DataSettings) -> None:
    loaded = load_prompts(data)
    assert [loaded.row(n).id for n in range(len(loaded))] == [f"sums.jsonl:{n}" for n in (1, 2, 3)]
    assert loaded.report.duplicates == 1
    data.fields.teacher_prompt = None
    loaded = load_prompts(data)
    assert [loaded.row(n).text for n in range(len(loaded))] == ["1+1=", "2+1="]


def test_the_teacher_reads_its_own_prompt_in_training(data: DataSettings) -> None:
    config = Config(data=data, rollout=RolloutSettings(prompts_per_step=3))
    batch = PromptFeed.load(config, TOKENIZER).batch(0, 3)
    assert [text(prompt.student_ids) for prompt in batch] == ["1+1=", "1+1=", "2+1="]
    assert [text(prompt.teacher_ids) for prompt in batch] == [row["shown"] for row in ROWS[:3]]


def test_the_teacher_reads_its_own_prompt_in_evaluation(data: DataSettings) -> None:
    config = Config(eval=EvalSettings(tasks=[EvalTask(name="sums", data=data)]))
    (task,) = held_out_tasks(config, TOKENIZER)
    assert [text(prompt.student_ids) for prompt in task.prompts] == ["1+1=", "1+1=", "2+1="]
    assert [text(prompt.teacher_ids) for prompt in task.prompts] == [
        row["shown"] for row in ROWS[:3]
    ]


def test_where_a_row_has_no_such_prompt_the_teacher_reads_the_students() -> None:
    rows: Any = SimpleNamespace(
        batch=lambda step, size: [
            PromptRow("a", "1+1=", None, "2", "s", teacher_text="1,1+1="),
            PromptRow("b", "2+1=", None, "3", "s"),
        ]
    )
    batch = PromptFeed(rows, DataSettings(), TOKENIZER).batch(0, 2)
    assert [(text(p.student_ids), text(p.teacher_ids)) for p in batch] == [
        ("1+1=", "1,1+1="),
        ("2+1=", "2+1="),
    ]
