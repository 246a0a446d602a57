"""Divergences of one rollout from what streams past anyway: log-probabilities on top-Ks.

The student gives its K most likely ids and their log-probabilities, the teacher its
log-probabilities of the same ids. What is left of either distribution is one tail bucket. A
divergence between the two coarser distributions never exceeds that between the full ones (data
processing inequality), so each value here is a lower bound, which grows to the exact one as K grows
to V.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd_ray.types import TopK

# Log-probabilities are float32, so their sum, and hence the tail, is known to about 1e-6. Adding
# this much to the tail keeps every value finite, and a lower bound where rounding made the tail too
# small.
TAIL_SLACK = 1e-6


@dataclass(frozen=True)
class StreamedScores:
    """Scores of one rollout's m tokens, float32; divergences in nats, lower bounds (to 1e-6)."""

    reverse_kl_m: np.ndarray  # KL(student || teacher)
    forward_kl_m: np.ndarray  # KL(teacher || student)
    jsd_m: np.ndarray  # Jensen-Shannon divergence, at most ln 2
    teacher_mass_m: np.ndarray  # teacher's probability of the student's top-K
    union_forward_kl_m: np.ndarray | None  # None where the teacher's own top-k is not given

    def columns(self) -> dict[str, np.ndarray]:
        """Those that are there, by their names in :data:`opd_ray.tip.scores.SCORES`."""
        found = {name.removesuffix("_m"): values for name, values in vars(self).items()}
        return {name: values for name, values in found.items() if values is not None}


def streamed_scores(
    student: TopK, teacher_at_student_mK: np.ndarray, teacher: TopK | None = None
) -> StreamedScores:
    """Scores of one rollout of m tokens; row t is the distribution that predicted token t.

    Args:
        student: the student's top-K; ids distinct within a row.
        teacher_at_student_mK: the teacher's log-probabilities of the same ids, nats.
        teacher: its own top-k, for ``union_forward_kl_m``.

    Values are taken as they are: they have been checked where they entered, those of a run by the
    contract of teachers.
    """
    student_mW = _with_tail(student.logprobs)
    teacher_mW = _with_tail(teacher_at_student_mK)
    middle_mW = (student_mW + teacher_mW) / 2.0
    jsd_m = (_kl(student_mW, middle_mW) + _kl(teacher_mW, middle_mW)) / 2.0
    union_m = None
    if teacher is not None:
        union_m = union_forward_kl(student, teacher_at_student_mK, teacher).astype(np.float32)
    mass_m = np.exp(teacher_at_student_mK.astype(np.float64)).sum(axis=1)
    return StreamedScores(
        reverse_kl_m=_kl(student_mW, teacher_mW).astype(np.float32),
        forward_kl_m=_kl(teacher_mW, student_mW).astype(np.float32),
        jsd_m=jsd_m.astype(np.float32),
        teacher_mass_m=np.minimum(mass_m, 1.0).astype(np.float32),
        union_forward_kl_m=union_m,
    )


def union_forward_kl(student: TopK, teacher_at_student_mK: np.ndarray, teacher: TopK) -> np.ndarray:
    """Forward KL renormalised on U, the union of both top-Ks (arXiv 2605.26844), [m] nats.

    U falls into the student's top-K, S, and the teacher's ids beyond it, O. The teacher is known on
    all of U; of the student on O no more is known than the sum P(O): at most its tail mass, and at
    most |O| times the least probability of its top-K. So O is taken as one bucket, and P(O) as the
    value within those limits that lies nearest to the teacher's. The result is the least value that
    a student with this top-K can have: a lower bound, exact where O is empty, and never negative.
    Spreading the tail mass over all V - K other tokens instead would put P(O) near zero and
    overstate the divergence just where the teacher disagrees.
    """
    outside_mk = ~_rows_contain(teacher.ids, student.ids)
    student_mK = np.exp(student.logprobs.astype(np.float64))
    teacher_mK = np.exp(teacher_at_student_mK.astype(np.float64))
    teacher_outside_m = (np.exp(teacher.logprobs.astype(np.float64)) * outside_mk).sum(axis=1)
    student_m = student_mK.sum(axis=1)
    teacher_m = np.maximum(teacher_mK.sum(axis=1), np.finfo(np.float64).tiny)
    limit_m = np.minimum(
        np.maximum(1.0 - student_m, 0.0) + TAIL_SLACK,
        outside_mk.sum(axis=1) * student_mK.min(axis=1),
    )
    student_outside_m = np.minimum(student_m * teacher_outside_m / teacher_m, limit_m)
    student_mW = np.concatenate((student_mK, student_outside_m[:, None]), axis=1)
    teacher_mW = np.concatenate((teacher_mK, teacher_outside_m[:, None]), axis=1)
    student_mW /= student_mW.sum(axis=1, keepdims=True)
    teacher_mW /= teacher_mW.sum(axis=1, keepdims=True)
    return _kl(teacher_mW, student_mW)


def _with_tail(logprobs_mK: np.ndarray) -> np.ndarray:
    """Probabilities of the K ids and of the tail, [m, K + 1] float64, rows summing to 1 exactly."""
    top_mK = np.exp(logprobs_mK.astype(np.float64))
    tail_m = np.maximum(1.0 - top_mK.sum(axis=1), 0.0) + TAIL_SLACK
    all_mW = np.concatenate((top_mK, tail_m[:, None]), axis=1)
    return all_mW / all_mW.sum(axis=1, keepdims=True)


def _kl(p_mW: np.ndarray, q_mW: np.ndarray) -> np.ndarray:
    """KL(p || q) of each row, [m]; a bucket with p = 0 adds nothing."""
    tiny = np.finfo(np.float64).tiny
    terms_mW = p_mW * (np.log(np.maximum(p_mW, tiny)) - np.log(np.maximum(q_mW, tiny)))
    return np.maximum(terms_mW.sum(axis=1), 0.0)


def _rows_contain(wanted_mk: np.ndarray, ids_mK: np.ndarray) -> np.ndarray:
    """Whether each wanted id is among the ids of its own row, [m, k] bool."""
    # Row and id as one number, so that one sorted search serves all rows.
    stride = int(max(wanted_mk.max(initial=0), ids_mK.max(initial=0))) + 1
    offset_m1 = np.arange(len(ids_mK), dtype=np.int64)[:, None] * stride
    return np.isin(wanted_mk + offset_m1, ids_mK + offset_m1, kind="sort")
