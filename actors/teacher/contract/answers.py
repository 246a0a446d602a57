"""The contract of a teacher, enforced on every request and answer of every kind of teacher.

A run stops at the first thing wrong with an answer; opd-ray check-teacher lists them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from actors.teacher.contract.arrays import (
    LOGPROB_TOLERANCE,
    entropy_problems,
    fits,
    hidden_problems,
    id_problems,
    logprob_problems,
    shape_problems,
    wrong_values,
)
from actors.teacher.protocol import TeacherError
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)

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


def check_size(info: TeacherInfo, vocab_size: int | None) -> None:
    """Refuse a distribution over tokens that the student has not; too few are found elsewhere."""
    if vocab_size is not None and info.vocab_size > vocab_size:
        raise TeacherError(
            f"teacher {info.name!r}: its info() says {info.vocab_size} tokens, student and teacher "
            f"share {vocab_size}: leave the others (padding rows, too) out of its distribution"
        )


def check_request(info: TeacherInfo, request: ScoreRequest) -> None:
    """Whether a teacher can be asked this.

    Raises:
        TeacherError: nothing to read or score, a sequence beyond the context, an id outside the
            vocabulary, or a top-k of the student that is none.
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
    for name, ids in (("prompt_ids", request.prompt_ids), ("response_ids", request.response_ids)):
        _raise_first(id_problems(who, name, ids, info.vocab_size))
    shape = (response, None)
    _raise_first(_named_problems(who, "student_topk", request.student_topk, shape, info.vocab_size))


def check_answers(
    info: TeacherInfo,
    requests: Sequence[ScoreRequest],
    answers: Any,
    *,
    signal: str,
    topk: int,
) -> None:
    """Whether ``answers`` are one valid answer a request, in order, as
    :class:`actors.teacher.protocol.Teacher` promises.

    Args:
        signal: the kind of signal the run trains on.
        topk: k of the topk signal.

    Raises:
        TeacherError: naming teacher, rollout and position, what came and what was expected.
    """
    _raise_first(answers_problems(info, requests, answers, signal=signal, topk=topk))


def answers_problems(
    info: TeacherInfo,
    requests: Sequence[ScoreRequest],
    answers: Any,
    *,
    signal: str,
    topk: int,
) -> Iterator[str]:
    """Everything for which :func:`check_answers` would refuse them, in its words."""
    who = f"teacher {info.name!r}"
    if not isinstance(answers, list) or len(answers) != len(requests):
        got = f"{len(answers)} answers" if isinstance(answers, list) else type(answers).__name__
        yield f"{who} returned {got}; expected a list of {len(requests)} answers"
        if not isinstance(answers, list):
            return
    asked = {request.rollout_id: request for request in requests}
    for place, answer in enumerate(answers):
        expected = requests[place].rollout_id if place < len(requests) else None
        if not isinstance(answer, TeacherAnswer):
            yield (
                f"{who}, rollout {expected!r}: answer {place} is a {type(answer).__name__}; "
                "expected a TeacherAnswer"
            )
            continue
        request = asked.get(answer.rollout_id)
        if answer.rollout_id != expected:
            problem = "never asked for" if request is None else "answers are out of order"
            yield (
                f"{who}: answer {place} is for rollout {answer.rollout_id!r} ({problem}); "
                f"expected {'no more' if expected is None else f'rollout {expected!r}'}"
            )
        if request is not None:
            yield from _answer_problems(info, request, answer, signal, topk)


def _raise_first(problems: Iterator[str]) -> None:
    for problem in problems:
        raise TeacherError(problem)


def _answer_problems(
    info: TeacherInfo, request: ScoreRequest, answer: TeacherAnswer, signal: str, topk: int
) -> Iterator[str]:
    who = f"teacher {info.name!r}, rollout {request.rollout_id!r}"
    m, k_student = request.student_topk.ids.shape
    yield from logprob_problems(who, "logprob", answer.logprob, (m,))
    yield from logprob_problems(who, "at_student_topk", answer.at_student_topk, (m, k_student))
    known = _Sampled(np.asarray(request.response_ids), answer.logprob)
    yield from known.agreement(
        who, "at_student_topk", request.student_topk.ids, answer.at_student_topk
    )
    if answer.entropy is not None:
        yield from entropy_problems(who, answer.entropy, m, info.vocab_size)
    own: object = answer.topk
    if isinstance(own, TopK):
        yield from _topk_problems(who, "topk", own, (m, None), info, known)
    elif own is not None:
        yield f"{who}: topk is a {type(own).__name__}; expected a TopK or None"

    if not isinstance(answer.signal, _SIGNAL_TYPES[signal]):
        yield (
            f"{who}: signal is a {type(answer.signal).__name__}; the run asks for a "
            f"{_SIGNAL_TYPES[signal].__name__} (teacher.signal is {signal!r})"
        )
    elif isinstance(answer.signal, TopKSignal):
        yield from _topk_problems(who, "signal", answer.signal, (m, topk), info, known)
    elif isinstance(answer.signal, SampledSignal):
        values = answer.signal.logprobs
        yield from logprob_problems(who, "signal.logprobs", values, (m,))
        if fits(values, (m,)) and known.usable:
            apart = np.abs(values - answer.logprob) > AGREEMENT
            yield from wrong_values(who, "signal.logprobs", values, apart, "the values of logprob")
    else:
        yield from hidden_problems(who, answer.signal.hidden, (m, info.hidden_size))


class _Sampled:
    """What an answer says of the sampled tokens, to hold its other statements against."""

    def __init__(self, ids_m: np.ndarray, logprob_m: Any) -> None:
        self._ids_m = ids_m
        self._logprob_m = logprob_m
        self.usable = fits(logprob_m, ids_m.shape)

    def agreement(self, who: str, name: str, ids: np.ndarray, logprobs: Any) -> Iterator[str]:
        """Two differing statements about a sampled token."""
        if not self.usable or not fits(logprobs, ids.shape):
            return
        apart = np.abs(logprobs - self._logprob_m[:, None]) > AGREEMENT
        yield from wrong_values(
            who,
            name,
            logprobs,
            apart & (ids == self._ids_m[:, None]),
            "the sampled token's logprob at the same position",
        )

    def missed(self, who: str, name: str, ids: np.ndarray, logprobs: np.ndarray) -> Iterator[str]:
        """Likeliest tokens [m, k] without a sampled one that is likelier than the last."""
        if not self.usable:
            return
        found = (ids == self._ids_m[:, None]).any(axis=1)
        yield from wrong_values(
            who,
            name,
            logprobs[:, -1],
            ~found & (self._logprob_m > logprobs[:, -1] + AGREEMENT),
            "the likeliest tokens (the sampled one is likelier than the last, yet not among them)",
        )


def _named_problems(
    who: str, name: str, topk: Any, shape: tuple[int, int | None], vocab_size: int
) -> Iterator[str]:
    """Of some tokens a row: distinct ids, and log-probabilities that one distribution can have."""
    ids, logprobs = topk.ids, topk.logprobs
    yield from logprob_problems(who, f"{name}.logprobs", logprobs, shape)
    if not fits(logprobs, shape):
        yield from id_problems(who, f"{name}.ids", ids, vocab_size)
        return
    if not logprobs.shape[1]:
        yield f"{who}: {name} has shape {list(logprobs.shape)}; expected at least one token a row"
        return
    yield from shape_problems(who, f"{name}.ids", ids, logprobs.shape)
    yield from id_problems(who, f"{name}.ids", ids, vocab_size)
    if fits(ids, logprobs.shape):
        in_order = np.sort(ids, axis=1)
        twice = in_order[:, 1:] == in_order[:, :-1]
        yield from wrong_values(who, f"{name}.ids", in_order[:, 1:], twice, "distinct ids")


def _topk_problems(
    who: str,
    name: str,
    topk: Any,
    shape: tuple[int, int | None],
    info: TeacherInfo,
    known: _Sampled,
) -> Iterator[str]:
    """Of the likeliest tokens of each row: order, and agreement with what else is said."""
    yield from _named_problems(who, name, topk, shape, info.vocab_size)
    ids, logprobs = topk.ids, topk.logprobs
    if not fits(logprobs, shape) or not logprobs.shape[1]:
        return
    rises = logprobs[:, 1:] > logprobs[:, :-1] + LOGPROB_TOLERANCE
    yield from wrong_values(who, f"{name}.logprobs", logprobs[:, 1:], rises, "descending order")
    if fits(ids, logprobs.shape):
        yield from known.agreement(who, f"{name}.logprobs", ids, logprobs)
        yield from known.missed(who, f"{name}.logprobs", ids, logprobs)
