"""opd-ray's side of end_to_end.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from watched_command import run_watched
from whole_run import command_of, figures_of

CONTEXT = 512  # tokens, as smollm2_gsm8k has it
ROW_TOKENS = 1536  # of the trainer's micro-batches


def own_loss(pair: Path, rollouts: list[dict[str, list[int]]]) -> float:
    """The loss of opd-ray's teacher and trainer on given rollouts, float32, nats a token."""
    from one_rank import one_rank

    from actors.teacher.kinds.hf import HfTeacher
    from opd_ray.config.choices import SignalChoice
    from opd_ray.config.schema import StudentSettings, TrainerSettings
    from opd_ray.config.teacher import TeacherSettings
    from opd_ray.types import ScoreRequest, TopK, TrainItem

    settings = TeacherSettings(path=str(pair / "teacher"), signal=SignalChoice.hidden)
    teacher = HfTeacher(settings)
    requests, items = [], []
    for number, rollout in enumerate(rollouts):
        prompt, response = (
            np.array(rollout[name], dtype=np.int32) for name in ("prompt_ids", "response_ids")
        )
        length = len(response)
        nothing = TopK(np.zeros((length, 1), np.int32), np.zeros((length, 1), np.float32))
        requests.append(ScoreRequest(str(number), prompt, response, nothing))
        ones = np.ones(length, np.float32)
        rows = np.arange(length, dtype=np.int32)
        items.append(TrainItem(str(number), prompt, response, rows, ones, ones))
    signals = {answer.rollout_id: answer.signal for answer in teacher.score(requests)}
    student = StudentSettings(path=str(pair / "student"))
    trainer = one_rank(student, TrainerSettings(), *teacher.output_head())
    total = float(sum(len(item.rows) for item in items))
    stats = trainer.train_step([items], total, 0.0, signals)
    return stats.loss_sum / total


def run_own(plan: dict[str, Any], folder: Path, data: Path) -> dict[str, Any]:
    """opd-ray's command line; returns what its metrics file says, and the peak memory."""
    settings = {
        "run.output_dir": folder,
        "run.steps": plan["steps"],
        "run.checkpoint_every": 0,
        "run.resume": "never",
        "data.shuffle": "false",
        "rollout.prompts_per_step": plan["prompts_per_step"],
        "rollout.max_new_tokens": plan["max_new_tokens"],
        "tip.rule": "all",
        "trainer.learning_rate": plan["learning_rate"],
        "trainer.micro_batch_tokens": ROW_TOKENS,
        "trainer.lr_schedule": "constant",
        "trainer.warmup_steps": 0,
        "trainer.adam_beta1": plan["adam_beta1"],
        "trainer.adam_beta2": plan["adam_beta2"],
        "eval.every": 0,
        "eval.tasks": "[]",
        "eval.kl_prompts": 0,
        **{f"{section}.dtype": plan["dtype"] for section in ("rollout", "teacher", "trainer")},
    }
    command = command_of(["train", "--config", "smollm2_gsm8k"], settings)
    peak = run_watched(command, folder.with_suffix(".log"), {"OPD_RAY_DATA": str(data)})
    rows = [row for row in figures_of(folder) if "seconds/step" in row]
    return {
        "seconds": [row["seconds/step"] for row in rows],
        "tokens": [row["train/kept_tokens"] for row in rows],
        "padding": statistics.mean(row["train/padding_share"] for row in rows),
        "stages": {
            name.removeprefix("seconds/"): statistics.mean(row[name] for row in rows[1:])
            for name in rows[0]
            if name.startswith("seconds/")
        },
        "peak": peak,
    }
