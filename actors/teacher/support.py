"""Which tokens a loss from the top-k signal tells apart: made of any teacher's answer alike.

Every answer holds the teacher's log-probabilities of the student's top-K, for the scores; the loss
may take them too. So the student's tokens cost a teacher nothing, whatever its kind.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from actors.teacher.contract.arrays import AGREEMENT, MASS_TOLERANCE, ArrayProblems
from actors.teacher.protocol import TeacherError
from opd_ray.config.choices import SignalChoice, Support
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import NO_TOKEN, ScoreRequest, Signal, TeacherAnswer, TopKSignal


def asked_of_teacher(settings: TeacherSettings, support: Support) -> TeacherSettings:
    """What a teacher is asked itself: ``topk`` is 0 where the loss takes nothing but its answers
    about the student's tokens."""
    if settings.signal is SignalChoice.topk and support is Support.student:
        return replace(settings, topk=0)
    return settings


def signal_of(who: str, request: ScoreRequest, answer: TeacherAnswer, support: Support) -> Signal:
    """What of an answer the loss will see, of the n asked rows; the answer has passed the contract.

    Args:
        who: the teacher, for messages.
        request: with the student's top-K.
        answer: to it.
        support: Support.teacher with every signal but the top-k.

    Raises:
        TeacherError: the answer says two things of one token, or gives the tokens of both top-ks
            more than a probability of 1 together.
    """
    ids_nK, logprobs_nK = request.student_topk.ids, answer.at_student_topk
    if support is Support.student:
        # Copied: what came through Ray's object store would stay there as long as it is held.
        return TopKSignal(ids_nK.copy(), logprobs_nK)
    signal = answer.signal
    assert signal is not None  # by the contract
    if support is Support.teacher:
        return signal
    assert isinstance(signal, TopKSignal)  # by the contract
    same_nKk = ids_nK[:, :, None] == signal.ids[:, None, :]
    known_nK = same_nKk.any(axis=2)
    own_nK = np.take_along_axis(signal.logprobs, same_nKk.argmax(axis=2), axis=1)
    arrays = ArrayProblems(f"{who}, rollout {request.rollout_id!r}", request.rows)
    apart_nK = known_nK & (np.abs(own_nK - logprobs_nK) > AGREEMENT)
    arrays.wrong(
        "at_student_topk", logprobs_nK, apart_nK, "what signal.logprobs says of the same token"
    )
    both = TopKSignal(
        np.concatenate((signal.ids, np.where(known_nK, np.int32(NO_TOKEN), ids_nK)), axis=1),
        np.concatenate(
            (signal.logprobs, np.where(known_nK, np.float32(-np.inf), logprobs_nK)), axis=1
        ),
    )
    mass_n = np.exp(both.logprobs.astype(np.float64)).sum(axis=1)
    arrays.wrong(
        "the mass of the teacher's top-k and the student's",
        mass_n,
        mass_n > 1 + MASS_TOLERANCE,
        "at most 1",
    )
    if arrays.found:
        raise TeacherError(arrays.found[0])
    return both
