"""The numbers of rollouts by the source of their prompt, where a step has several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd_ray.tip import Selection, TokenScores
from opd_ray.types import Rollout

# A column of sources may name every row; so many figures would tell nobody anything.
MOST_SOURCES = 16
_SCORES = ("entropy", "reverse_kl", "forward_kl")


def source_metrics(
    rollouts: Sequence[Rollout], scores: TokenScores, selection: Selection
) -> dict[str, float]:
    """Of the rollouts of each source, and of what the student wrote in them.

    None where all rollouts of the step are of one source, or of more than MOST_SOURCES.

    Args:
        rollouts: of the step, R of them.
        scores: of their tokens, in their order.
        selection: what was kept of these.
    """
    names = sorted({rollout.source for rollout in rollouts})
    if not 2 <= len(names) <= MOST_SOURCES:
        return {}
    student = scores.student_tokens()
    source_R = np.array([names.index(rollout.source) for rollout in rollouts])
    source_M = np.repeat(source_R, student.lengths_R)
    columns = {"kept_share": (selection.weights_N > 0)[scores.response_mask_N]}
    columns |= {
        f"{name}_mean": student.get(name, "the step's metrics")
        for name in _SCORES
        if student.has(name)
    }
    values: dict[str, float] = {}
    for number, name in enumerate(names):
        of_source = [one for one in rollouts if one.source == name]
        cut = [one.finish_reason != "stop" for one in of_source]
        of_source_M = source_M == number
        values |= {
            f"source/{name}/rollouts": len(of_source),
            f"source/{name}/tokens": int(of_source_M.sum()),
            f"source/{name}/truncated": float(np.mean(cut)),
        }
        if of_source_M.any():
            values |= {
                f"source/{name}/{column}": float(values_M[of_source_M].mean())
                for column, values_M in columns.items()
            }
    return values
