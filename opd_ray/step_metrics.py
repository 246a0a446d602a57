"""The numbers of one training step, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opd_ray.pools.scorer import Judged
from opd_ray.pools.teachers.account import PoolStats
from opd_ray.pools.trainers import StepAccount
from opd_ray.teacher_metrics import teacher_metrics
from opd_ray.tip import Selection, TokenScores

_QUANTILES = (0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class StepSnapshot:
    """What one step saw and chose; the last one of a run is drawn in its report."""

    judged: Sequence[Judged]
    scores: TokenScores
    selection: Selection


def step_metrics(
    snapshot: StepSnapshot,
    account: StepAccount,
    peak_memory_bytes: dict[str, int],
    seconds: dict[str, float],
    pools: Mapping[str, PoolStats],
    alone_seconds: float,
) -> dict[str, float]:
    """All metrics of a step.

    Args:
        snapshot: what it saw and chose.
        account: its gradient step.
        peak_memory_bytes: by process.
        seconds: the stage clock's report.
        pools: the account of every teacher's pool over this step, by its name.
        alone_seconds: how long it waited for teachers alone.
    """
    judged, scores, selection = snapshot.judged, snapshot.scores, snapshot.selection
    lengths = np.array([len(j.rollout.response_ids) for j in judged])
    tokens = int(lengths.sum())
    student = scores.student_tokens()
    values: dict[str, float] = {
        "train/loss": account.loss,
        "train/grad_norm": account.grad_norm,
        "train/learning_rate": account.learning_rate,
        "train/kept_tokens": account.kept_tokens,
        "train/trunk_tokens": account.trunk_tokens,
        "train/padding_share": account.padding_share,
        "train/skipped": float(account.skipped),
        "rollout/tokens": tokens,
        "rollout/length_mean": float(lengths.mean()),
        "rollout/length_max": float(lengths.max()),
        "rollout/truncated": float(np.mean([j.rollout.finish_reason == "length" for j in judged])),
        "rollout/weights_version": min(j.rollout.weights_version for j in judged),
        "tokens_per_second/step": tokens / seconds["seconds/step"],
        "idle_share": seconds["seconds/idle"] / seconds["seconds/step"],
        **seconds,
        **teacher_metrics(
            pools,
            alone_seconds=alone_seconds,
            step_seconds=seconds["seconds/step"],
            tokens=tokens,
            kept_tokens=account.kept_tokens,
        ),
        **{f"tip/{name}": value for name, value in selection.as_metrics().items()},
    }
    for name in ("entropy", "reverse_kl", "forward_kl"):
        if student.has(name):
            values |= _spread(f"scores/{name}", student.get(name, "the step's metrics"))
    if student.has("entropy"):
        h_N = student.get("entropy", "the step's metrics") / math.log(student.vocab_size)
        values |= _spread("scores/h", h_N)
    # At a loss temperature other than 1 the trainer has nothing to compare with vLLM.
    if not math.isnan(account.gap_mean):
        values |= {"sync/gap_mean": account.gap_mean, "sync/gap_max": account.gap_max}
    return values | {f"memory/{name}_bytes": peak for name, peak in peak_memory_bytes.items()}


def _spread(name: str, values_N: np.ndarray) -> dict[str, float]:
    """Mean and quantiles."""
    quantiles = np.quantile(values_N, _QUANTILES)
    named = {
        f"{name}_q{round(share * 100):02d}": float(value)
        for share, value in zip(_QUANTILES, quantiles, strict=True)
    }
    return {f"{name}_mean": float(values_N.mean()), **named}
