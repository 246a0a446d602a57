"""Problems without an answer, and gold answers that nobody can give, before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opd_ray.config.data import DataKind, DataSettings
from opd_ray.config.schema import Config, EvalSettings, EvalTask
from opd_ray.data.prompts import HeldOutTask, held_out_tasks
from opd_ray.data.rows import DataError
from opd_ray.models.pairs.demo import character_tokenizer
from opd_ray.preflight.prompts import prompt_notes

PROSE = "She sold 48 clips. Then she sold half as many."


def task(folder: Path, name: str, *answers: Any, **settings: Any) -> HeldOutTask:
    rows = [{"prompt": f"{n}+1=", "answer": answer} for n, answer in enumerate(answers)]
    file = folder / "gold.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(kind=DataKind.jsonl, path=str(file))
    held_out = EvalTask(name="sums", task=name, data=data, **settings)
    config = Config(eval=EvalSettings(tasks=[held_out]))
    return held_out_tasks(config, character_tokenizer())[0]


def test_problems_without_an_answer_are_named_by_row(tmp_path: Path) -> None:
    answers = ["1", None, *["1"] * 3, *[None] * 6]
    with pytest.raises(DataError) as caught:
        task(tmp_path, "math", *answers, problems=None)
    message = str(caught.value)
    assert message.startswith("eval.tasks[0].data: 7 of 11 problems have no answer")
    assert "gold.jsonl, line 2; " in message
    assert message.count("gold.jsonl, line ") == 5
    assert "and 2 more" in message
    assert "set eval.tasks[0].data.fields.answer" in message
    # Beyond those that are asked nobody looks.
    assert len(task(tmp_path, "math", *answers, problems=1).answers) == 1


def test_gold_answers_that_nobody_gives_are_counted_and_named(tmp_path: Path) -> None:
    found = task(tmp_path, "math", "7", PROSE, "nan", "x+1")
    (note,) = prompt_notes(None, [found])
    assert "eval task 'sums': 2 of its 4 gold answers are none that a response" in note
    assert f"gold.jsonl, line 2, whole sentences: '{PROSE}'" in note
    assert "gold.jsonl, line 3, a missing value as text: 'nan'" in note
    assert "data.fields.answer" in note


def test_none_that_can_be_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'sums': 2 of its 2 gold answers .*line 1, whole sent"):
        task(tmp_path, "math", PROSE, PROSE)
    with pytest.raises(DataError, match=r"'sums': 1 of its 1 gold .*line 1, no whole number: 'ma"):
        task(tmp_path, "chain_sum", "many")


def test_solutions_as_gold_answers_are_said(tmp_path: Path) -> None:
    (note,) = task(tmp_path, "math", "Add them. #### 72", r"So \boxed{3}.", "5").notes
    assert "'sums': 2 of its 3 gold answers are solutions, of which only the answer counts" in note
    assert "gold.jsonl, line 1: '72'; " in note
    assert "gold.jsonl, line 2: '3'" in note


def test_usual_gold_answers_are_not_worth_a_word(tmp_path: Path) -> None:
    assert task(tmp_path, "math", "72", 0.5, r"\text{east}", "1, 2", "Yes").notes == []
    assert task(tmp_path, "chain_sum", "12+34=46,46+56=102.", 102, 102.0).notes == []


def test_a_task_of_the_users_is_asked_only_what_it_can_tell(tmp_path: Path) -> None:
    assert task(tmp_path, f"{__name__}:Silent", PROSE).notes == []


class Silent:
    """A task that knows nothing of gold answers."""

    name = "silent"

    def extract(self, response_text: str) -> str | None:
        return response_text

    def verify(self, response_text: str, answer: str) -> bool:
        return True
