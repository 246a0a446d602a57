"""Choose tokens by score: a share of each turn, rollout or batch, which may move with the step."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from opd_ray.tip.ragged import count_per_rollout, order_statistics, rollout_starts
from opd_ray.tip.scores import TokenScores


class SelectBy(StrEnum):
    """How scores become weights."""

    top_share = "top_share"
    threshold = "threshold"
    soft = "soft"


class ShareOf(StrEnum):
    """The tokens that a share is taken of."""

    turn = "turn"
    rollout = "rollout"
    batch = "batch"


class RhoSchedule(StrEnum):
    """Course of the share over the steps."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


def share_groups(tokens: TokenScores, share_of: ShareOf) -> np.ndarray:
    """Sizes of the groups, side by side, of each of which a share is taken, [J], [R] or [1].

    Args:
        tokens: those that the student wrote (:meth:`TokenScores.student_tokens`).
        share_of: turns, rollouts or the batch.
    """
    match share_of:
        case ShareOf.turn:
            return tokens.turn_lengths()
        case ShareOf.rollout:
            return tokens.lengths_R
        case ShareOf.batch:
            return tokens.lengths_R.sum(keepdims=True)


def share_counts(lengths_R: np.ndarray, rho: float) -> np.ndarray:
    """floor(rho m) for each length m, [R] int64.

    In binary, 0.29 * 100 is 28.999999999999996: products are raised by one part in 10^12, a
    thousand times their rounding error, so that the floor is that of the decimal product.
    """
    return np.floor(rho * lengths_R * (1.0 + 1e-12)).astype(np.int64)


def keep_greatest(scores_M: np.ndarray, lengths_R: np.ndarray, counts_R: np.ndarray) -> np.ndarray:
    """The ``counts_R`` greatest scores of each rollout, [M] bool; ties go to the earlier position.

    Scores are compared as float32. ``counts_R`` must not exceed ``lengths_R``.
    """
    if len(scores_M) == 0:
        return np.zeros(0, dtype=np.bool_)
    scores_M = scores_M.astype(np.float32, copy=False)
    # The least score that is kept in each rollout; of a rollout that keeps nothing, any will do.
    places_R = np.maximum(lengths_R - np.maximum(counts_R, 1), 0)
    least_M = np.repeat(order_statistics(scores_M, lengths_R, places_R), lengths_R)
    keep_M = scores_M >= least_M
    if np.count_nonzero(keep_M) == counts_R.sum():
        return keep_M
    # There are ties at an edge: what the greater ones leave of the count goes to the earlier ones.
    keep_M = scores_M > least_M
    tied_M = scores_M == least_M
    room_R = counts_R - count_per_rollout(keep_M, lengths_R)
    ties_M = np.cumsum(tied_M, dtype=np.int64)
    ties_before_R = np.concatenate(([0], ties_M))[rollout_starts(lengths_R)]
    keep_M |= tied_M & (ties_M <= np.repeat(room_R + ties_before_R, lengths_R))
    return keep_M & np.repeat(counts_R > 0, lengths_R)
