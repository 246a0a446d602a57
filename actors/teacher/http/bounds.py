"""Values for teacher log-probabilities that are not told: those of the least possible divergence.

A server names its own likeliest tokens. Of a student's token that is not among them two things are
known: it is no likelier than the least likely one named, and all tokens not named share the mass
that is left. Any values within these limits could be true. The ones chosen here give, with the
student's top-K and its tail as buckets, the least divergence of them all, so the streamed scores
stay lower bounds (:mod:`opd_ray.tip.streamed`).
"""

from __future__ import annotations

import numpy as np

from opd_ray.tip.streamed import TAIL_SLACK

_HALVINGS = 60  # of an interval of log ratios that is never wider than about 30


def least_divergent(
    student_logprobs_mK: np.ndarray,
    teacher_logprobs_mK: np.ndarray,
    known_mK: np.ndarray,
    cap_m: np.ndarray,
    named_mass_m: np.ndarray,
) -> np.ndarray:
    """The teacher's log-probabilities of the student's top-K with the unknown ones filled in.

    A divergence of the family KL, reverse KL, JSD grows with the spread of the ratios teacher :
    student over the buckets. So the unknown buckets, the tail among them, take one common ratio,
    except tokens at their limit ``cap_m`` and a tail that holds more of the teacher's named mass
    already. The ratio is where all buckets sum to 1.

    Args:
        student_logprobs_mK: of the student's K likeliest tokens, nats.
        teacher_logprobs_mK: the teacher's of the same tokens, nats; ignored where unknown.
        known_mK: which of them the teacher told.
        cap_m: the highest log-probability that an unknown token of the row can have, nats.
        named_mass_m: probability of all tokens that the teacher named, of the student's top-K or
            not.

    Returns:
        [m, K] float32, nats, finite; known values as they were.
    """
    filled_mK = np.array(teacher_logprobs_mK, np.float32)
    rows = ~known_mK.all(axis=1)
    if not rows.any():
        return filled_mK
    known_nK = known_mK[rows]
    student_nK = np.exp(student_logprobs_mK[rows].astype(np.float64))
    unknown_nK = np.where(known_nK, 0.0, np.maximum(student_nK, np.finfo(np.float64).tiny))
    told_n = np.where(known_nK, np.exp(teacher_logprobs_mK[rows].astype(np.float64)), 0.0).sum(1)
    cap_n1 = np.exp(cap_m[rows].astype(np.float64))[:, None]
    # The same allowance for rounding as where the scores are taken.
    student_tail_n = np.maximum(1.0 - student_nK.sum(axis=1), 0.0) + TAIL_SLACK
    left_n = np.maximum(1.0 - told_n, 0.0) + TAIL_SLACK  # for the unknown tokens and the tail
    tail_named_n = np.maximum(named_mass_m[rows] - told_n, 0.0)
    tail_named_n = np.minimum(tail_named_n, left_n - TAIL_SLACK)

    low_n = np.log((left_n - tail_named_n) / (unknown_nK.sum(axis=1) + student_tail_n))
    high_n = np.log(left_n / student_tail_n)
    for _ in range(_HALVINGS):
        middle_n = (low_n + high_n) / 2
        ratio_n = np.exp(middle_n)
        sum_n = np.minimum(cap_n1, ratio_n[:, None] * unknown_nK).sum(axis=1) + np.maximum(
            tail_named_n, ratio_n * student_tail_n
        )
        high_n = np.where(sum_n > left_n, middle_n, high_n)
        low_n = np.where(sum_n > left_n, low_n, middle_n)
    value_nK = np.minimum(cap_m[rows, None], low_n[:, None] + student_logprobs_mK[rows])
    filled_mK[rows] = np.where(known_nK, filled_mK[rows], value_nK)
    return filled_mK
