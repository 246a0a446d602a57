"""The contract of a teacher, enforced on every request and answer of every kind of teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.teacher.protocol import TeacherError
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopKSignal,
)

# Rounding that log-probabilities and probabilities may show (half-precision servers included).
LOGPROB_TOLERANCE = 1e-3
MASS_TOLERANCE = 1e-2
# How far two statements of one answer about the same token may lie apart, nats. A server may have
# made them in two passes in half precision; misaligned rows differ by whole nats.
AGREEMENT = 0.1

_SIGNAL_TYPES = {"topk": TopKSignal, "hidden": HiddenSignal, "sampled": SampledSignal}


def check_info(info: TeacherInfo, *, signal: str, topk: int) -> None:
    """Whether a teacher can give what a run asks for.

    Raises:
        TeacherError: naming what it lacks.
    """
    who = f"teacher {info.name!r}"
    if signal not in info.signals:
        raise TeacherError(
            f"{who} has no {signal!r} signal; set teacher.signal to one of {list(info.signals)}"
        )
    if signal == "hidden" and info.hidden_size is None:
        raise TeacherError(f"{who} offers hidden states but its info() has no hidden_size")
    if signal == "topk":
        limit = info.vocab_size if info.max_topk is None else min(info.max_topk, info.vocab_size)
        if not 1 <= topk <= limit:
            raise TeacherError(f"{who}: teacher.topk is {topk}, it can give 1 to {limit}")


def check_request(info: TeacherInfo, request: ScoreRequest) -> None:
    """Whether a teacher can be asked this.

    Raises:
        TeacherError: nothing to read or score, a sequence beyond the context, or an id outside
            the vocabulary.
    """
    who = f"teacher {info.name!r}, rollout {request.rollout_id!r}"
    prompt, response = len(request.prompt_ids), len(request.response_ids)
    if not prompt:
        raise TeacherError(f"{who}: the prompt is empty, nothing predicts the first response token")
    if not response:
        raise TeacherError(f"{who}: the response is empty, there is nothing to score")
    if prompt + response > info.context_length:
        raise TeacherError(
            f"{who}: {prompt} prompt and {response} response tokens exceed the teacher's context "
            f"of {info.context_length} tokens; shorten the prompts or lower rollout.max_new_tokens"
        )
    _require_shape(who, "student_topk.logprobs", request.student_topk.logprobs, (response, None))
    _require_shape(
        who, "student_topk.ids", request.student_topk.ids, request.student_topk.logprobs.shape
    )
    for name, ids in (
        ("prompt_ids", request.prompt_ids),
        ("response_ids", request.response_ids),
        ("student_topk.ids", request.student_topk.ids),
    ):
        _require_ids(who, name, ids, info.vocab_size)


def check_answers(
    info: TeacherInfo,
    requests: Sequence[ScoreRequest],
    answers: Any,
    *,
    signal: str,
    topk: int,
) -> None:
    """Whether ``answers`` are one valid answer a request, in order.

    Args:
        signal: the kind of signal the run trains on.
        topk: k of the topk signal.

    Raises:
        TeacherError: naming teacher, rollout and position, what came and what was expected.
    """
    who = f"teacher {info.name!r}"
    if not isinstance(answers, list) or len(answers) != len(requests):
        got = f"{len(answers)} answers" if isinstance(answers, list) else type(answers).__name__
        raise TeacherError(f"{who} returned {got}; expected a list of {len(requests)} answers")
    asked = {request.rollout_id for request in requests}
    for place, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        if not isinstance(answer, TeacherAnswer):
            raise TeacherError(
                f"{who}, rollout {request.rollout_id!r}: answer {place} is a "
                f"{type(answer).__name__}; expected a TeacherAnswer"
            )
        if answer.rollout_id != request.rollout_id:
            problem = (
                "answers are out of order" if answer.rollout_id in asked else "never asked for"
            )
            raise TeacherError(
                f"{who}: answer {place} is for rollout {answer.rollout_id!r} ({problem}); "
                f"expected rollout {request.rollout_id!r}"
            )
        check_answer(info, request, answer, signal=signal, topk=topk)


def check_answer(
    info: TeacherInfo,
    request: ScoreRequest,
    answer: TeacherAnswer,
    *,
    signal: str,
    topk: int,
) -> None:
    """Whether one answer keeps the contract of :class:`actors.teacher.protocol.Teacher`.

    Raises:
        TeacherError: naming teacher, rollout and position, what came and what was expected.
    """
    who = f"teacher {info.name!r}, rollout {request.rollout_id!r}"
    m, k_student = request.student_topk.ids.shape
    sampled = np.asarray(request.response_ids)
    _require_logprobs(who, "logprob", answer.logprob, (m,))
    _require_logprobs(who, "at_student_topk", answer.at_student_topk, (m, k_student))
    _require_agreement(
        who, "at_student_topk", request.student_topk.ids, answer.at_student_topk, sampled, answer
    )
    if answer.entropy is not None:
        _require_floats(who, "entropy", answer.entropy, (m,))
        highest = float(np.log(info.vocab_size))
        bad = (answer.entropy < -LOGPROB_TOLERANCE) | (answer.entropy > highest + LOGPROB_TOLERANCE)
        _refuse(who, "entropy", answer.entropy, bad, f"0 to ln(vocabulary) = {highest:.4f} nats")
    if answer.topk is not None:
        _require_topk(who, "topk", answer.topk, (m, None), info, sampled, answer)

    if not isinstance(answer.signal, _SIGNAL_TYPES[signal]):
        raise TeacherError(
            f"{who}: signal is a {type(answer.signal).__name__}; the run asks for a "
            f"{_SIGNAL_TYPES[signal].__name__} (teacher.signal is {signal!r})"
        )
    if isinstance(answer.signal, TopKSignal):
        _require_topk(who, "signal", answer.signal, (m, topk), info, sampled, answer)
    elif isinstance(answer.signal, SampledSignal):
        _require_logprobs(who, "signal.logprobs", answer.signal.logprobs, (m,))
        apart = np.abs(answer.signal.logprobs - answer.logprob) > AGREEMENT
        _refuse(who, "signal.logprobs", answer.signal.logprobs, apart, "the values of logprob")
    else:
        _require_hidden(who, answer.signal.hidden, (m, info.hidden_size))


def _require_topk(
    who: str,
    name: str,
    topk: Any,
    shape: tuple[int, int | None],
    info: TeacherInfo,
    sampled: np.ndarray,
    answer: TeacherAnswer,
) -> None:
    _require_logprobs(who, f"{name}.logprobs", topk.logprobs, shape)
    _require_shape(who, f"{name}.ids", topk.ids, topk.logprobs.shape)
    _require_ids(who, f"{name}.ids", topk.ids, info.vocab_size)
    in_order = np.sort(topk.ids, axis=1)
    _refuse(
        who, f"{name}.ids", in_order[:, 1:], in_order[:, 1:] == in_order[:, :-1], "distinct ids"
    )
    rises = topk.logprobs[:, 1:] > topk.logprobs[:, :-1] + LOGPROB_TOLERANCE
    _refuse(who, f"{name}.logprobs", topk.logprobs[:, 1:], rises, "descending order")
    found = _require_agreement(who, f"{name}.logprobs", topk.ids, topk.logprobs, sampled, answer)
    missed = ~found & (answer.logprob > topk.logprobs[:, -1] + AGREEMENT)
    _refuse(
        who,
        f"{name}.logprobs",
        topk.logprobs[:, -1],
        missed,
        "the likeliest tokens (the sampled one is likelier than the last, yet not among them)",
    )


def _require_agreement(
    who: str,
    name: str,
    ids: np.ndarray,
    logprobs: np.ndarray,
    sampled: np.ndarray,
    answer: TeacherAnswer,
) -> np.ndarray:
    """Refuse two differing statements about a sampled token; returns where it is in ``ids`` [m]."""
    same = ids == sampled[:, None]
    apart = same & (np.abs(logprobs - answer.logprob[:, None]) > AGREEMENT)
    _refuse(who, name, logprobs, apart, "the sampled token's logprob at the same position")
    return same.any(axis=1)


def _require_logprobs(who: str, name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    _require_floats(who, name, values, shape)
    _refuse(who, name, values, values > LOGPROB_TOLERANCE, "log-probabilities of at most 0")
    if values.ndim == 2:
        mass = np.exp(values.astype(np.float64)).sum(axis=1)
        _refuse(who, f"mass of {name}", mass, mass > 1 + MASS_TOLERANCE, "at most 1")


def _require_floats(who: str, name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    _require_shape(who, name, values, shape)
    if values.dtype != np.float32:
        raise TeacherError(f"{who}: {name} has dtype {values.dtype}; expected float32")
    _refuse(who, name, values, ~np.isfinite(values), "finite numbers")


def _require_hidden(who: str, values: Any, shape: tuple[int, int | None]) -> None:
    _require_shape(who, "signal.hidden", values, shape)
    if values.dtype == np.uint16:
        # An exponent of all ones is inf or NaN in bfloat16.
        infinite = (values & 0x7F80) == 0x7F80
    elif values.dtype == np.float32:
        infinite = ~np.isfinite(values)
    else:
        raise TeacherError(
            f"{who}: signal.hidden has dtype {values.dtype}; expected float32, or uint16 with "
            "bfloat16 bits"
        )
    _refuse(who, "signal.hidden", values, infinite, "finite numbers")


def _require_shape(who: str, name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    """Axes given as None may have any size."""
    if not isinstance(values, np.ndarray):
        raise TeacherError(f"{who}: {name} is a {type(values).__name__}; expected a numpy array")
    if len(values.shape) != len(shape) or any(
        want is not None and got != want for got, want in zip(values.shape, shape, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise TeacherError(f"{who}: {name} has shape {list(values.shape)}; expected [{wanted}]")


def _require_ids(who: str, name: str, ids: np.ndarray, vocab_size: int) -> None:
    if not isinstance(ids, np.ndarray) or ids.dtype != np.int32:
        got = getattr(ids, "dtype", type(ids).__name__)
        raise TeacherError(f"{who}: {name} has dtype {got}; expected int32")
    _refuse(
        who,
        name,
        ids,
        (ids < 0) | (ids >= vocab_size),
        f"ids from 0 to {vocab_size - 1} (vocabulary)",
    )


def _refuse(who: str, name: str, values: np.ndarray, bad: np.ndarray, expected: str) -> None:
    """Raise for the first position at which ``bad`` (same shape as ``values``) holds."""
    if not bad.any():
        return
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    count = int(bad.reshape(len(bad), -1).any(axis=1).sum())
    raise TeacherError(
        f"{who}, position {place[0]}: {name} is {values[place]}; expected {expected} "
        f"({count} of {len(bad)} positions are wrong)"
    )
