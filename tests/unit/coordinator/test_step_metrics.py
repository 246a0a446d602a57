"""The figures of a training step, each by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from fake_replicas import make_pool

from opd_ray.coordinator.metrics import StepSnapshot, step_metrics
from opd_ray.pools.scorer import ScoredRollout
from opd_ray.pools.teachers.account import PoolStats
from opd_ray.step_account import StepAccount
from opd_ray.tip import Selection, TokenScores
from opd_ray.types import Rollout, RolloutScores

ACCOUNT = StepAccount(
    loss_sum=0.75,
    weight_sum=3.0,
    kept_tokens=3,
    trunk_tokens=400,
    padding_tokens=20,
    grad_norm=2.0,
    learning_rate=1e-4,
    gap_sum=0.03,
    gap_max=0.03,
    skipped=False,
    seconds=1.0,
)
VOCAB = 16
ENTROPY = np.array([0.0, 0.5, 1.0, 2.0, math.log(VOCAB)], np.float32)


def pools() -> dict[str, PoolStats]:
    """Of one teacher, which did nothing."""
    return {"teacher": make_pool(1)[0].stats()}


def scored(name: str, tokens: int, finish_reason: str, version: int) -> ScoredRollout:
    floats = np.zeros(tokens, np.float32)
    ids = np.zeros(tokens, np.int32)
    mask = np.ones(tokens, np.uint8)
    rollout = Rollout(name, name, 0, ids, ids, mask, floats, floats, finish_reason, version)
    return ScoredRollout(rollout, RolloutScores(name, {"reverse_kl": floats}))


def figures(account: StepAccount = ACCOUNT, **scores: np.ndarray) -> dict[str, float]:
    """Of a step of 2 s with rollouts of 1 and 4 tokens."""
    snapshot = StepSnapshot(
        scored=[scored("a", 1, "length", 7), scored("b", 4, "stop", 6)],
        scores=TokenScores(
            np.array([1, 4]), np.ones(5, np.bool_), vocab_size=VOCAB, entropy_N=ENTROPY, **scores
        ),
        selection=Selection(np.ones(5, np.float32), rho=0.5, kept_fraction=0.6),
    )
    seconds = {"seconds/step": 2.0, "seconds/train": 1.5, "seconds/idle": 0.5}
    return step_metrics(snapshot, account, {"trainer-0": 1024}, seconds, pools(), alone_seconds=0.0)


def test_what_a_step_did():
    values = figures()
    expected = {
        "train/loss": 0.25,
        "train/kept_tokens": 3,
        "train/trunk_tokens": 400,
        "train/padding_share": 0.05,
        "train/grad_norm": 2.0,
        "train/learning_rate": 1e-4,
        "train/skipped": 0.0,
        "rollout/tokens": 5,
        "rollout/length_mean": 2.5,
        "rollout/length_max": 4,
        "rollout/truncated": 0.5,
        "rollout/weights_version": 6,  # the oldest that wrote
        "tokens_per_second/step": 2.5,
        "idle_share": 0.25,
        "seconds/train": 1.5,
        "tip/rho": 0.5,
        "tip/kept_fraction": 0.6,
        "sync/gap_mean": 0.01,
        "sync/gap_max": 0.03,
        "memory/trainer-0_bytes": 1024,
    }
    assert {name: values[name] for name in expected} == expected


def test_shares_are_of_the_step_and_its_own_tokens():
    teacher = replace(make_pool(1)[0].stats(), signal_rows=4, signal_bytes=600)
    snapshot = StepSnapshot(
        scored=[scored(name, 1, "stop", 0) for name in "abc"] + [scored("d", 1, "length", 0)],
        scores=TokenScores(np.ones(4, int), np.ones(4, np.bool_), vocab_size=VOCAB),
        selection=Selection(np.ones(4, np.float32), rho=1.0, kept_fraction=1.0),
    )
    seconds = {"seconds/step": 4.0, "seconds/idle": 0.0}
    values = step_metrics(snapshot, ACCOUNT, {}, seconds, {"t": teacher}, alone_seconds=1.0)
    assert values["rollout/truncated"] == 0.25
    assert values["teacher/bottleneck_share"] == 0.25
    assert values["teacher/signal_bytes_per_trained_token"] == 200  # of 3 kept tokens
    assert values["teacher/signal_bytes_all_rows"] == 600  # 150 a row, 4 tokens


def test_spreads_of_the_scores():
    values = figures(reverse_kl_N=np.array([1, 2, 3, 4, 5], np.float32))
    assert values["scores/reverse_kl_mean"] == 3.0
    assert values["scores/reverse_kl_q10"] == pytest.approx(1.4)
    assert values["scores/reverse_kl_q50"] == 3.0
    assert values["scores/reverse_kl_q90"] == pytest.approx(4.6)
    assert values["scores/reverse_kl_q99"] == pytest.approx(4.96)
    assert values["scores/h_q50"] == pytest.approx(1.0 / math.log(VOCAB))
    assert values["scores/h_mean"] == pytest.approx(ENTROPY.mean() / math.log(VOCAB))
    assert not any(name.startswith("scores/forward_kl") for name in values)  # not known


def test_tokens_of_tools_are_no_tokens_of_the_step():
    one, other = scored("a", 6, "stop", 0), scored("b", 3, "length", 0)
    one.rollout.response_mask[1:5] = 0
    mask = np.concatenate((one.rollout.response_mask, other.rollout.response_mask))
    entropy = np.where(mask, 1.0, np.nan).astype(np.float32)
    snapshot = StepSnapshot(
        scored=[one, other],
        scores=TokenScores(np.array([6, 3]), mask, vocab_size=VOCAB, entropy_N=entropy),
        selection=Selection(mask.astype(np.float32), rho=1.0, kept_fraction=1.0),
    )
    teacher = replace(make_pool(1)[0].stats(), signal_rows=3, signal_bytes=300)
    seconds = {"seconds/step": 2.0, "seconds/idle": 0.0}
    values = step_metrics(snapshot, ACCOUNT, {}, seconds, {"t": teacher}, alone_seconds=0.0)
    assert (values["rollout/tokens"], values["tokens_per_second/step"]) == (5, 2.5)
    assert (values["rollout/length_mean"], values["rollout/length_max"]) == (2.5, 3)
    assert values["scores/entropy_mean"] == 1.0
    assert values["teacher/signal_bytes_all_rows"] == 500


def test_an_unknown_gap_is_left_out():
    values = figures(replace(ACCOUNT, gap_sum=math.nan, gap_max=math.nan))
    assert not any(name.startswith("sync/") for name in values)


def test_only_tokens_of_the_student_count_in_spreads():
    snapshot = StepSnapshot(
        scored=[scored("a", 2, "stop", 0)],
        scores=TokenScores(
            np.array([2]),
            np.array([True, False]),
            vocab_size=VOCAB,
            entropy_N=np.array([1.0, np.nan], np.float32),
        ),
        selection=Selection(np.ones(2, np.float32), rho=1.0, kept_fraction=1.0),
    )
    seconds = {"seconds/step": 1.0, "seconds/idle": 0.0}
    values = step_metrics(snapshot, ACCOUNT, {}, seconds, pools(), alone_seconds=0.0)
    assert values["scores/entropy_mean"] == 1.0
