"""The likeliest tokens of student and teacher, of a few rollouts that a person will look at."""

from __future__ import annotations

import numpy as np

from opd_ray.types import NO_TOKEN, Likeliest, ScoreRequest, TeacherAnswer, TopK, TopKSignal


def likeliest_tokens(request: ScoreRequest, answer: TeacherAnswer) -> Likeliest:
    """As many of each of the n asked rows as the request wants, the likeliest first.

    The teacher's are among all tokens that its answer names: the student's top-K, and its own top-k
    where it gave one. Of a teacher that gave hidden states these are the student's alone.
    """
    count = request.likeliest
    students = request.student_topk
    ids_nE, logprobs_nE = students.ids, answer.at_student_topk
    own = answer.signal if isinstance(answer.signal, TopKSignal) else answer.topk
    if own is not None:
        known_nk = (own.ids[:, :, None] == students.ids[:, None, :]).any(axis=2)
        others_nk = np.where(known_nk, np.float32(-np.inf), own.logprobs)
        ids_nE = np.concatenate((ids_nE, own.ids), axis=1)
        logprobs_nE = np.concatenate((logprobs_nE, others_nk), axis=1)
    order_nk = np.argsort(-logprobs_nE, axis=1, kind="stable")[:, :count]
    found_nk = np.take_along_axis(logprobs_nE, order_nk, axis=1)
    chosen_nk = np.take_along_axis(ids_nE, order_nk, axis=1)
    there_nk = found_nk > -np.inf
    return Likeliest(
        student=TopK(students.ids[:, :count].copy(), students.logprobs[:, :count].copy()),
        teacher=TopK(np.where(there_nk, chosen_nk, np.int32(NO_TOKEN)), found_nk),
    )
