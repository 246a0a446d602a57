"""The numbers of rollouts that act: by turn, of their calls, endings and environments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd_ray.tip import Selection, TokenScores
from opd_ray.types import ENDINGS, Rollout, RolloutFigure, environment_figures

# What is said a rollout under the name of the figure; seconds have their unit in their own name.
_CALL_FIGURES = {
    RolloutFigure.calls: "tools/calls_per_rollout",
    RolloutFigure.parse_error: "tools/parse_error_per_rollout",
    RolloutFigure.unknown: "tools/unknown_per_rollout",
    RolloutFigure.failed: "tools/failed_per_rollout",
    RolloutFigure.timeout: "tools/timeout_per_rollout",
    RolloutFigure.cut: "tools/cut_per_rollout",
    RolloutFigure.tool_seconds: "tools/seconds_per_rollout",
}


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What became of the rollouts of a step; of those that have no environment, the cache alone."""
    values: dict[str, float] = {}
    read = sum(r.figures.get(RolloutFigure.prompt_tokens, 0.0) for r in rollouts)
    if read:
        cached = sum(r.figures.get(RolloutFigure.cached_tokens, 0.0) for r in rollouts)
        values["rollout/cached_share"] = cached / read
    acting = [rollout for rollout in rollouts if rollout.turns is not None]
    if not acting:
        return values
    turns = [_turns(rollout) for rollout in acting]
    lengths = [len(rollout.response_ids) for rollout in acting]
    endings = [rollout.finish_reason for rollout in acting]
    values |= {
        "rollout/turns_mean": float(np.mean(turns)),
        "rollout/turns_max": max(turns),
        "rollout/response_mean": float(np.mean(lengths)),
        "rollout/response_max": max(lengths),
        "rollout/others_share": _others_share(acting),
        **{f"rollout/ended/{name}": endings.count(name) / len(acting) for name in ENDINGS},
    }
    for figure, name in _CALL_FIGURES.items():
        found = [rollout.figures[figure] for rollout in acting if figure in rollout.figures]
        if found:
            values[name] = float(np.mean(found))
    said = [environment_figures(rollout.figures) for rollout in acting]
    for name in dict.fromkeys(name for figures in said for name in figures):
        own = [figures[name] for figures in said if name in figures]
        values[f"environment/{name}"] = float(np.mean(own))
    return values


def turn_metrics(
    rollouts: Sequence[Rollout], scores: TokenScores, selection: Selection
) -> dict[str, float]:
    """Of the student's tokens, by the number of their turn; none where no rollout acts."""
    if scores.turns_N is None:
        return {}
    student = scores.student_tokens()
    acting_R = np.array([rollout.turns is not None for rollout in rollouts])
    acting_M = np.repeat(acting_R, student.lengths_R)
    assert student.turns_N is not None
    buckets = turn_buckets(student.turns_N[acting_M])
    columns = {"kept_share": (selection.weights_N > 0)[scores.response_mask_N]}
    for name in ("entropy", "reverse_kl", "forward_kl"):
        if student.has(name):
            columns[f"{name}_mean"] = student.get(name, "the step's metrics")
    counts = np.bincount(buckets)
    values: dict[str, float] = {}
    for bucket in np.flatnonzero(counts).tolist():
        values[f"turn/{bucket_name(bucket)}/tokens"] = float(counts[bucket])
    for column, values_M in columns.items():
        sums = np.bincount(buckets, weights=values_M[acting_M], minlength=len(counts))
        for bucket in np.flatnonzero(counts).tolist():
            values[f"turn/{bucket_name(bucket)}/{column}"] = float(sums[bucket] / counts[bucket])
    return values


def turn_buckets(turns: np.ndarray) -> np.ndarray:
    """The bucket of each turn number: 0 to 3 one each, then 4-7, 8-15 and so on by doubling."""
    _, exponents = np.frexp(turns.astype(np.float64))
    return np.where(turns < 4, turns, exponents + 1).astype(np.int64)


def bucket_name(bucket: int) -> str:
    """The turn numbers of a bucket, as figures name them: "3", "4-7"."""
    return str(bucket) if bucket < 4 else f"{2 ** (bucket - 2)}-{2 ** (bucket - 1) - 1}"


def _turns(rollout: Rollout) -> int:
    """Turns of the student, also of a rollout whose tokens were all left out."""
    return int(rollout.turns[-1]) + 1 if rollout.turns is not None and len(rollout.turns) else 0


def _others_share(rollouts: Sequence[Rollout]) -> float:
    """Share of the tokens that the student did not write, of the rollouts that count at all."""
    counted = [rollout.response_mask for rollout in rollouts if rollout.response_mask.any()]
    tokens = sum(len(mask) for mask in counted)
    written = sum(int(np.count_nonzero(mask)) for mask in counted)
    return 1.0 - written / tokens if tokens else 0.0
