"""Whole runs whose students act: two kinds of prompts, tools in processes, exact scores, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from acting import CHAT_TEMPLATE
from launching import rows
from shared_actors import shared_actors
from started_ray import started_ray
from tiny_models import EOS, character_tokenizer, make_tiny_qwen3

from opd_ray.output.close_ups import RolloutView, StepView, read_views, unpacked

ENDS = [EOS, 20, 40, 60, 80]


@pytest.fixture
def config(tmp_path: Path) -> tuple[str, ...]:
    """Eight prompts, half of which act; a pair of random models that end their turns often."""
    for name, seed in (("student", 0), ("teacher", 1)):
        folder = make_tiny_qwen3(tmp_path / name, seed=seed)
        tokenizer = character_tokenizer(96)
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
    for name in ("acts", "alone"):
        lines = [json.dumps({"prompt": f"{name} {n}?", "answer": "x"}) for n in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return (
        f"student.path={tmp_path}/student",
        "student.context_length=320",
        f"teacher.path={tmp_path}/teacher",
        "teacher.signal=hidden",
        "data.kind=jsonl",
        f"data.path={tmp_path}/*.jsonl",
        "environments={acts.jsonl: {path: 'acting:Echo', parser: 'acting:EveryTurnCalls', "
        "own_process: true, max_turn_tokens: 40}}",
        "environment.concurrent_rollouts=2",
        "rollout.max_new_tokens=200",
        "rollout.prompts_per_step=8",
        "rollout.samples_per_prompt=1",
        "rollout.temperature=1.7",
        "scoring=exact",
        "tip.share_of=turn",
        "tip.rho=0.25",
        "trainer.lr_schedule=constant",
        "trainer.learning_rate=1e-4",
        "sync.max_gap=0.01",
    )


def test_a_run_that_acts_and_one_that_goes_on(config: tuple[str, ...], tmp_path: Path) -> None:
    # Rollout actors and the environments' own processes import the world.
    here = Path(__file__).parents[1]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    path = f"{here.parent}:{here / 'actors'}"
    with (
        started_ray(2, PYTHONPATH=path) as address,
        shared_actors(tmp_path / "shared", address, *config, "run.steps=2") as actors,
    ):
        actors.run(whole, "run.checkpoint_every=1")
        checkpoint = whole / "checkpoints" / "step_00000001"
        actors.run(resumed, f"run.resume={checkpoint}")
    first, second = rows(whole)
    for row in (first, second):
        # The trainer reads tools' tokens where the engine read them, and predicts the student's.
        assert row["sync/gap_mean"] < 1e-4
        assert row["rollout/turns_mean"] > 1.0
        assert row["tools/calls_per_rollout"] > 0.0
        assert row["tools/failed_per_rollout"] == 0.0
        assert row["environment/looks"] > 0.0
        # A quarter of each turn, rounded down.
        assert 0.1 < row["turn/0/kept_share"] <= 0.25
        assert row["train/loss"] > 0.01
    (again,) = rows(resumed)
    for name in ("rollout/tokens", "environment/looks", "turn/0/tokens"):
        assert again[name] == second[name]
    np.testing.assert_allclose(again["train/loss"], second["train/loss"], rtol=1e-3)
    check_close_ups(whole)


def check_close_ups(folder: Path) -> None:
    """What is kept for the report: likeliest tokens stand in the rows of what was sampled."""
    views = [view for _, view in read_views(folder / "close_ups.jsonl")]
    rollouts = [view for view in views if isinstance(view, RolloutView)]
    assert len(rollouts) == 8  # four of each step
    for whose, name in (("student", "rollout_logprob"), ("teacher", "teacher_logprob")):
        met = 0
        for view in rollouts:
            ids = unpacked(view.ids, "<i4")[unpacked(view.mask, "<u1") == 1]
            likeliest = unpacked(view.likeliest[whose][0], "<i4").reshape(len(ids), -1)
            logprobs = unpacked(view.likeliest[whose][1], "<f4").reshape(len(ids), -1)
            rows_n, places_n = np.nonzero(likeliest == ids[:, None])
            said = unpacked(view.columns[name], "<f4")[rows_n]
            np.testing.assert_allclose(logprobs[rows_n, places_n], said, atol=1e-3)
            met += len(rows_n)
        assert met > 20
    steps = [view for view in views if isinstance(view, StepView)]
    for view in steps:
        worked = {name for name, _, _ in view.spans}
        assert {name for name, _ in view.lanes} == worked
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '"state":"finished"' in page
