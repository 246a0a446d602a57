"""Steps that learn nothing, and a teacher worse than its student: said, with cause and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_session import config_of, go
from stand_in_run import StandInRun
from stand_ins import Response

from opd_ray.config.choices import LrSchedule
from opd_ray.config.schema import EvalSettings, EvalTask, RunSettings, TrainerSettings
from opd_ray.coordinator import run as training
from opd_ray.coordinator.nothing import nothing_learned, steps_note, teacher_notes
from opd_ray.step_account import StepAccount
from opd_ray.tip import TipFilter, TipSettings, TokenScores


def scores(
    *lengths: int, mask: int = 1, reverse_kl: float = 0.5, turns: list[int] | None = None
) -> TokenScores:
    count = sum(lengths)
    return TokenScores(
        np.array(lengths),
        np.full(count, mask, bool),
        vocab_size=16,
        entropy_N=np.zeros(count),
        reverse_kl_N=np.full(count, reverse_kl),
        forward_kl_N=np.zeros(count),
        turns_N=None if turns is None else np.array(turns),
    )


def with_tools(batch: TokenScores, mask: list[int]) -> TokenScores:
    return replace(batch, response_mask_N=np.array(mask, bool))


def account(kept: int = 0, rate: float = 1.0, gradient: float = 1.0) -> StepAccount:
    return StepAccount(
        loss_sum=0.0,
        weight_sum=float(kept),
        kept_tokens=kept,
        trunk_tokens=0,
        padding_tokens=0,
        grad_norm=gradient,
        learning_rate=rate,
        gap_sum=0.0,
        gap_max=0.0,
        skipped=not kept,
        seconds=0.0,
    )


@pytest.mark.parametrize(
    ("tip", "batch", "why"),
    [
        (TipSettings(rho=0.0), scores(4), "tip.rho is 0"),
        # A response of one token, of which half is none.
        (
            TipSettings(rule="q3_only"),
            scores(1),
            "tip.rho = 0.5 of a response of at most 1 tokens is less than one token; raise it",
        ),
        (
            TipSettings(rho=0.25),
            scores(3, 2),
            "tip.rho = 0.25 of a response of at most 3 tokens is less than one token; raise it, or "
            "set tip.share_of to batch",
        ),
        (
            TipSettings(rho=0.25, share_of="batch"),
            scores(2, 1),
            "tip.rho = 0.25 of a batch of at most 3 tokens is less than one token; raise it",
        ),
        (
            TipSettings(rho=0.25, share_of="turn"),
            scores(4, 3, turns=[0, 0, 0, 1, 0, 0, 1]),
            "tip.rho = 0.25 of a turn of at most 3 tokens is less than one token; raise it, or set "
            "tip.share_of to rollout",
        ),
        (
            TipSettings(rho=0.2, share_of="turn"),
            scores(4, 3, turns=[0, 0, 0, 1, 0, 0, 1]),
            "tip.rho = 0.2 of a turn of at most 3 tokens is less than one token; raise it, or set "
            "tip.share_of to batch",
        ),
        (
            TipSettings(selection="threshold", threshold=2.0),
            scores(4),
            "no score of the rule soft_or lies beyond tip.threshold = 2",
        ),
        (
            TipSettings(rule="divergence_topk", selection="soft"),
            scores(4, reverse_kl=0.0),
            "every score of the rule divergence_topk is 0",
        ),
        (TipSettings(), scores(0), "the student wrote none"),
        (
            TipSettings(),
            scores(4, 3, mask=0),
            "all 2 rollouts came to a limit (rollout/ended/... says which) and are left out; raise "
            "the limit, or set environment.keep_truncated=true",
        ),
        (
            TipSettings(rho=0.3),
            with_tools(scores(6, 2), [1, 0, 0, 1, 0, 1, 0, 0]),
            "tip.rho = 0.3 of a response of at most 3 tokens is less than one token; raise it",
        ),
    ],
)
def test_why_no_token_is_kept(tip: TipSettings, batch: TokenScores, why: str) -> None:
    seeds = np.zeros(len(batch.lengths_R), np.int64)
    selection = TipFilter(tip).select(batch, seeds, step=0)
    assert not selection.weights_N.any()
    said = nothing_learned(account(), selection, batch, tip)
    assert said == f"the filter kept no token: {why}"


def test_a_step_with_kept_tokens_may_learn_nothing_either() -> None:
    tip, batch = TipSettings(), scores(4)
    selection = TipFilter(tip).select(batch, np.zeros(1, np.int64), step=0)
    assert nothing_learned(account(2), selection, batch, tip) is None
    said = nothing_learned(account(2, rate=0.0), selection, batch, tip)
    assert said == "the learning rate is 0"
    said = nothing_learned(account(2, gradient=0.0), selection, batch, tip)
    assert said == "the gradient is zero: the student already says what its teacher says"


RESPONSES = {name: Response([1, 1], [-1.0, -1.0], [0.5, 0.25]) for name in ("a0", "a1", "b0", "b1")}


def test_a_run_says_so_and_does_not_bury_the_rest() -> None:
    tip = TipSettings(rule="divergence_topk", rho=0.25)
    run = StandInRun(RESPONSES, tip=tip, run=RunSettings(steps=12))
    run.go(0)
    said = [line for line in run.printed.getvalue().splitlines() if "learned nothing" in line]
    why = (
        "the filter kept no token: tip.rho = 0.25 of a response of at most 2 tokens is less than "
        "one token; raise it, or set tip.share_of to batch"
    )
    assert said == [
        f"step 1 learned nothing: {why}",
        f"step 10 learned nothing, as 9 before: {why}",
    ]
    assert steps_note([values for _, values in run.rows]) == (
        "12 of 12 steps learned nothing: 12 in which the filter kept no token"
    )


def test_a_healthy_run_says_nothing() -> None:
    trainer = TrainerSettings(ranks=2, lr_schedule=LrSchedule.constant, learning_rate=1.0)
    run = StandInRun(RESPONSES, trainer=trainer)
    run.go(0)
    assert "nothing" not in run.printed.getvalue()
    assert steps_note([values for _, values in run.rows]) is None


def test_steps_are_counted_over_the_whole_run() -> None:
    kept = {"train/loss": 0.5, "train/skipped": 0.0, "train/grad_norm": 1.0}
    rows = [
        {"step": 0, "eval/kl": 0.1},
        {**kept, "train/learning_rate": 0.1},
        {**kept, "train/learning_rate": 0.0},
        {**kept, "train/learning_rate": 0.1, "train/grad_norm": 0.0},
        {"train/loss": 0.0, "train/skipped": 1.0, "train/grad_norm": 0.0},
    ]
    assert steps_note(rows) == (
        "3 of 4 steps learned nothing: 1 in which the filter kept no token, 2 without a gradient "
        "or rate"
    )
    assert steps_note(rows[:2]) is None
    assert steps_note([]) is None


BEFORE = {"step": 0, "eval/sums/accuracy": 0.75, "eval/sums/accuracy_se": 0.03}
AFTER = {"step": 4, "eval/sums/accuracy": 0.5, "eval/sums/accuracy_se": 0.04}


def test_a_teacher_that_is_worse_is_said_with_figures() -> None:
    teacher = {
        "eval/sums/accuracy": 0.25,
        "eval/sums/accuracy_se": 0.04,
        "eval/sums/tokens": 3.0,
    }
    rows = [BEFORE, {"step": 1, "train/loss": 1.0}, AFTER]
    assert teacher_notes(rows, teacher) == [
        "the teacher is worse than the student was before the run on sums/accuracy: 0.2500 ± "
        "0.0400 against 0.7500 ± 0.0300, 0.5000 ± 0.0400 after it"
    ]
    # The errors of both together: 0.05.
    near = {**teacher, "eval/sums/accuracy": 0.66}
    (note,) = teacher_notes(rows, near)
    assert note.endswith("after it; the difference is within two standard errors")
    assert teacher_notes(rows, {**teacher, "eval/sums/accuracy": 0.75}) == []
    assert teacher_notes(rows, {}) == []
    assert teacher_notes([], teacher) == []
    sampled = {"eval/sums/mean@4": 0.1, "eval/sums/pass@4": 0.1}
    start = {"eval/sums/mean@4": 0.2, "eval/sums/pass@4": 0.3, "eval/sums/mean@4_se": float("nan")}
    assert teacher_notes([start], sampled) == [
        "the teacher is worse than the student was before the run on sums/mean@4: 0.1000 against "
        "0.2000, 0.2000 after it"
    ]


def test_the_report_and_the_progress_say_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = SimpleNamespace(settings=EvalTask(name="sums"), prompts=[], notes=[])
    monkeypatch.setattr(training, "accuracy", lambda *args: {"eval/sums/accuracy": 0.25})
    launcher = SimpleNamespace(
        nodes=(), peak_memory=dict, end_trainers=lambda: None, teacher_as_rollout_pool=lambda: None
    )
    step = {"train/loss": 0.0, "train/skipped": 1.0, "train/kept_tokens": 0, "rollout/tokens": 4}
    step |= {f"seconds/{name}": 1.0 for name in ("rollout_and_teacher", "train", "step", "idle")}

    def train() -> None:
        rows = [BEFORE, {"step": 1, **step}, AFTER]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    config = config_of(eval=EvalSettings(teacher_accuracy=True, kl_prompts=0))
    go(tmp_path, config, then=train, tasks=[task], launcher=launcher)  # type: ignore[list-item]
    said = capsys.readouterr()
    report = (tmp_path / "report.txt").read_text()
    for note in (
        "1 of 1 steps learned nothing: 1 in which the filter kept no token",
        "the teacher is worse than the student was before the run on sums/accuracy: 0.2500 "
        "against 0.7500 ± 0.0300, 0.5000 ± 0.0400 after it",
    ):
        assert f"{note}\n" in said.err
        assert f"note: {note}\n" in said.out
        assert f"note: {note}\n" in report


def test_a_run_says_which_options_have_no_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path, config_of(tip=TipSettings(stream_decay=0.5)))
    said = capsys.readouterr().err
    assert "tip.stream_decay = 0.5 has no effect: tip.normalise_over is batch\n" in said
