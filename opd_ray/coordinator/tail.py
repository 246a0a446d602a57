"""How long a step waited for its last rollouts, and what training on the others would gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from opd_ray.pools.scorer import ScoredBatch

HALF, TENTH = "rollout/tail_half_seconds", "rollout/tail_tenth_seconds"
GAIN = "rollout/overlap_gain_seconds"


def tail_metrics(batch: ScoredBatch) -> dict[str, float]:
    """Seconds from the half, and from nine tenths, of the rollouts written to the last one."""
    written_R = np.sort(batch.written_R)
    last = written_R[-1]

    def since(share: float) -> float:
        return float(last - written_R[math.ceil(share * len(written_R)) - 1])

    return {HALF: since(0.5), TENTH: since(0.9)}


def overlap_gain(scored_R: np.ndarray, work_R: np.ndarray, train_seconds: float) -> float:
    """Seconds that a step would be shorter if each rollout were trained on once it is scored.

    An upper bound: rollouts one by one, in the order of their scores, each for its share of the
    seconds that training took.

    Args:
        scored_R: [R] seconds from the batch's begin till each was scored.
        work_R: [R] what training on each costs, in any unit: tokens of its text, 0 if none of its
            tokens is kept.
        train_seconds: of the step, when it trained on all of them at its end.
    """
    if not work_R.any():
        return 0.0
    seconds_R = train_seconds * work_R / work_R.sum()
    done = 0.0
    for index in np.argsort(scored_R, kind="stable"):
        done = max(done, float(scored_R[index])) + float(seconds_R[index])
    return float(scored_R.max()) + train_seconds - max(done, float(scored_R.max()))


def tail_note(rows: Sequence[Mapping[str, float]]) -> str | None:
    """What a user should know of the tail of a run's steps; nothing without steps.

    Args:
        rows: the run's metrics.
    """
    steps = [row for row in rows if HALF in row]
    if not steps:
        return None

    def middle(name: str) -> float:
        return median(row[name] for row in steps if name in row)

    text = (
        f"tail of a step (medians): {middle(HALF):.2f} s from half of its rollouts written to the "
        f"last, {middle(TENTH):.2f} s from nine tenths"
    )
    if not any(GAIN in row for row in steps):
        return text
    gain, whole = middle(GAIN), middle("seconds/step")
    return (
        f"{text}; run.overlap=true, which trains meanwhile, would save at most {gain:.2f} s of "
        f"{whole:.2f} s a step"
    )
