"""The contract of a teacher, enforced on every request and answer of every kind of teacher.

A run stops at the first thing wrong with an answer; opd-ray check-teacher lists them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from actors.teacher.contract.arrays import AGREEMENT, LOGPROB_TOLERANCE, ArrayProblems, Shape
from actors.teacher.protocol import HeadTeacher, Teacher, TeacherError
from opd_ray.config.choices import SignalChoice, Support
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)

_SIGNAL_TYPES = {
    SignalChoice.topk: TopKSignal,
    SignalChoice.hidden: HiddenSignal,
    SignalChoice.sampled: SampledSignal,
}


def check_info(
    info: TeacherInfo, settings: TeacherSettings, support: Support = Support.teacher
) -> None:
    """Whether a teacher can give the ``signal``, ``topk`` and ``support`` that a run asks for.

    Raises:
        TeacherError: naming what it lacks.
    """
    who, signal, topk = f"teacher {info.name!r}", settings.signal.value, settings.topk
    if support is not Support.teacher:
        if info.meta.get("reads_student_logprobs"):
            raise TeacherError(
                f"{who} knows only bounds of some of the student's tokens, no values for a loss "
                f"with loss.support = {support}: use loss.support=teacher, or a server asked for "
                "all tokens (teacher.named_tokens of the whole vocabulary)"
            )
        if not topk:  # of its own it is asked nothing
            return
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
    """Refuse a distribution over tokens that the student has not; too few are found elsewhere.

    Raises:
        TeacherError: ``info`` says more than ``vocab_size`` tokens.
    """
    if vocab_size is not None and info.vocab_size > vocab_size:
        raise TeacherError(
            f"teacher {info.name!r}: its info() says {info.vocab_size} tokens, student and teacher "
            f"share {vocab_size}: leave the others (padding rows, too) out of its distribution"
        )


def checked_head(teacher: Teacher, who: str | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight [V, D] and bias [V] or None of a teacher's output layer, as ``to_array`` gives them.

    Raises:
        TeacherError: this kind of teacher has none to give, or one of another shape.
    """
    info = teacher.info()
    who = who or f"teacher {info.name!r}"
    if not isinstance(teacher, HeadTeacher):
        raise TeacherError(f"{who} has no output_head(): set teacher.signal to topk")
    weight, bias = teacher.output_head()
    expected = (info.vocab_size, info.hidden_size)
    if weight.shape != expected or (bias is not None and bias.shape != expected[:1]):
        raise TeacherError(
            f"{who}: output_head() has shape {weight.shape}, "
            f"bias {None if bias is None else bias.shape}; its info() says {expected}"
        )
    return weight, bias


def check_request(info: TeacherInfo, request: ScoreRequest) -> None:
    """Whether a teacher can be asked this.

    Raises:
        TeacherError: nothing to read or score, a sequence beyond the context, an id outside the
            vocabulary, rows that are none of the response's, or a top-k of the student that is
            none.
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
    if request.rows is not None:
        _check_rows(who, request.rows, response)
    arrays = ArrayProblems(who)
    arrays.ids("prompt_ids", request.prompt_ids, info.vocab_size)
    arrays.ids("response_ids", request.response_ids, info.vocab_size)
    asked = ArrayProblems(who, request.rows)
    shape = (len(request.asked), None)
    asked.named_tokens("student_topk", request.student_topk, shape, info.vocab_size)
    if found := arrays.found + asked.found:
        raise TeacherError(found[0])


def _check_rows(who: str, rows: np.ndarray, response: int) -> None:
    """Whether the positions asked about are some of a response, ascending."""
    if not len(rows):
        raise TeacherError(f"{who}: rows is empty, no token of the response is asked about")
    wrong = (rows < 0) | (rows >= response)
    wrong[1:] |= rows[1:] <= rows[:-1]
    if wrong.any():
        raise TeacherError(
            f"{who}: rows names position {rows[wrong.argmax()]}; expected ascending positions of a "
            f"response of {response} tokens"
        )


def check_answers(
    info: TeacherInfo, requests: Sequence[ScoreRequest], answers: Any, settings: TeacherSettings
) -> None:
    """Whether ``answers`` are one valid answer a request, in order, as
    :class:`actors.teacher.protocol.Teacher` promises, with the ``signal`` and ``topk`` of the run.

    Raises:
        TeacherError: naming teacher, rollout and position, what came and what was expected.
    """
    for problem in answers_problems(info, requests, answers, settings):
        raise TeacherError(problem)


def answers_problems(
    info: TeacherInfo, requests: Sequence[ScoreRequest], answers: Any, settings: TeacherSettings
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
            yield from _problems(info, request, answer, settings)


@np.errstate(all="ignore")  # what is wrong with numbers is said in words
def _problems(
    info: TeacherInfo, request: ScoreRequest, answer: TeacherAnswer, settings: TeacherSettings
) -> list[str]:
    """What is wrong with one answer."""
    arrays = _AnswerArrays(info, request, answer)
    n, k_student = request.student_topk.ids.shape
    if arrays.logprobs("at_student_topk", answer.at_student_topk, (n, k_student)):
        arrays.agree("at_student_topk", request.student_topk.ids, answer.at_student_topk)
    if answer.entropy is not None:
        arrays.entropies(answer.entropy, n, info.vocab_size)
    own: object = answer.topk
    if isinstance(own, TopK):
        arrays.likeliest("topk", own, (n, None))
    elif own is not None:
        arrays.add(f"topk is a {type(own).__name__}; expected a TopK or None")

    if settings.signal is SignalChoice.topk and not settings.topk:
        return arrays.found  # no signal is asked of it
    wanted = _SIGNAL_TYPES[settings.signal]
    if not isinstance(answer.signal, wanted):
        arrays.add(
            f"signal is a {type(answer.signal).__name__}; the run asks for a {wanted.__name__} "
            f"(teacher.signal is {settings.signal.value!r})"
        )
    elif isinstance(answer.signal, TopKSignal):
        arrays.likeliest("signal", answer.signal, (n, settings.topk))
    elif isinstance(answer.signal, SampledSignal):
        arrays.repeats_logprob("signal.logprobs", answer.signal.logprobs)
    elif isinstance(answer.signal, HiddenSignal):
        arrays.hidden("signal.hidden", answer.signal.hidden, (n, info.hidden_size))
    return arrays.found


class _AnswerArrays(ArrayProblems):
    """Holds an answer's other statements against what it says of the sampled tokens, too."""

    def __init__(self, info: TeacherInfo, request: ScoreRequest, answer: TeacherAnswer) -> None:
        super().__init__(f"teacher {info.name!r}, rollout {request.rollout_id!r}", request.rows)
        self._vocab_size = info.vocab_size
        self._sampled_n1 = request.response_ids[request.asked, None]
        self._logprob_n = answer.logprob
        self._usable = self.logprobs("logprob", answer.logprob, request.asked.shape)

    def agree(self, name: str, ids: np.ndarray, logprobs: np.ndarray) -> None:
        """Of tokens [n, K]: no two differing statements about a sampled token."""
        if self._usable:
            apart = np.abs(logprobs - self._logprob_n[:, None]) > AGREEMENT
            apart &= ids == self._sampled_n1
            self.wrong(name, logprobs, apart, "the sampled token's logprob at the same position")

    def repeats_logprob(self, name: str, values: Any) -> None:
        """Of log-probabilities [n] of the sampled tokens."""
        if self.logprobs(name, values, (len(self._sampled_n1),)) and self._usable:
            apart = np.abs(values - self._logprob_n) > AGREEMENT
            self.wrong(name, values, apart, "the values of logprob")

    def likeliest(self, name: str, topk: TopK | TopKSignal, shape: Shape) -> None:
        """Of the likeliest tokens of each row: order, and agreement with what else is said."""
        if not self.named_tokens(name, topk, shape, self._vocab_size):
            return
        name, logprobs = f"{name}.logprobs", topk.logprobs
        rises = logprobs[:, 1:] > logprobs[:, :-1] + LOGPROB_TOLERANCE
        self.wrong(name, logprobs[:, 1:], rises, "descending order")
        self.agree(name, topk.ids, logprobs)
        if self._usable:
            missed = self._logprob_n > logprobs[:, -1] + AGREEMENT
            missed &= ~(topk.ids == self._sampled_n1).any(axis=1)
            expected = (
                "the likeliest tokens (the sampled one is likelier than the last, yet not among "
                "them)"
            )
            self.wrong(name, logprobs[:, -1], missed, expected)
