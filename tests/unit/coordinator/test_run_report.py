"""What a run leaves when it has ended: the export, and a report with the teacher's figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_session import TOKENIZER, config_of, go

from opd_ray.config.schema import EvalSettings, EvalTask
from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.seeds import derive_seed
from opd_ray.types import Rollout, RolloutRequest, Sampling


class Teacher:
    """A pool of engines that write 4. to everything."""

    def __init__(self) -> None:
        self.asked: list[RolloutRequest] = []

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Iterator[Rollout]:
        self.asked += requests
        response = np.array(TOKENIZER("4.")["input_ids"], np.int32)
        nothing = np.empty(0, np.float32)
        for r in requests:
            ids = (r.rollout_id, r.prompt_id, r.sample, r.prompt_ids)
            yield Rollout(*ids, response, np.ones(2, np.uint8), nothing, nothing, "stop", 0)


class Task:
    """The response up to its full stop."""

    name = "digit"

    def extract(self, response_text: str) -> str | None:
        return response_text.removesuffix(".") or None

    def verify(self, response_text: str, answer: str) -> bool:
        return response_text == f"{answer}."


def test_the_teacher_is_asked_as_the_student_is_and_stands_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.array(TOKENIZER("2+2=")["input_ids"], np.int32)
    prompts = [Prompt("p", ids, ids), Prompt("q", ids, ids)]
    held_out = HeldOutTask(EvalTask(name="sums", samples=2), Task(), prompts, ["4", "5"])
    teacher = Teacher()
    ended: list[str] = []
    launcher = SimpleNamespace(
        nodes=(),
        peak_memory=lambda: {"trainer-0": 1 << 30},
        end_trainers=lambda: ended.append("trainers"),
        teacher_as_rollout_pool=lambda: teacher,
    )
    config = config_of(eval=EvalSettings(teacher_accuracy=True))
    rows = [
        {"step": 0, "eval/sums/accuracy": 0.125},
        {"step": 10, "eval/sums/accuracy": 0.25},
    ]

    def train() -> None:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    session = go(tmp_path, config, then=train, tasks=[held_out], launcher=launcher, repeated=1)
    assert "eval task 'sums': 1 of its 2 problems are also among the" in capsys.readouterr().err
    assert session.exit_code == 0
    assert session.events == [f"export {tmp_path / 'export'}"]
    assert ended == ["trainers"]  # none is needed for the report, nor could end it
    # Once greedily, then twice each, with the seeds that these names have in this run.
    asked = [(request.prompt_id, request.sample, request.seed) for request in teacher.asked]
    names = [("p", 0), ("q", 0), ("p", 0), ("p", 1), ("q", 0), ("q", 1)]
    assert asked == [(key, n, derive_seed(7, "eval", "sums", key, n)) for key, n in names]
    report = (tmp_path / "report.txt").read_text()
    (line,) = [line for line in report.splitlines() if " sums/accuracy " in line]
    assert [cell.strip() for cell in line[1:-1].split("│")] == [
        "sums/accuracy",
        *("0.1250", "0.2500", "0.5000"),
    ]
    assert "1.00 GiB" in report
    assert (tmp_path / "plots" / "curves.png").is_file()
