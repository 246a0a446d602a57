"""What a teacher actor does, without Ray: checked scoring, scores out, signals held back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from actors.teacher.answer_check import check_answers, check_info, check_request
from actors.teacher.protocol import HeadTeacher, MixtureTeacher, Teacher, TeacherError
from actors.teacher.store import SignalStore
from opd_ray.config.teacher import TeacherSettings
from opd_ray.tip.streamed import streamed_scores
from opd_ray.types import (
    HeadPart,
    HiddenSignal,
    RolloutScores,
    ScoreRequest,
    Signal,
    TeacherAnswer,
    TeacherInfo,
)


class TeacherServer:
    """One teacher and the signals it holds.

    Scoring may run in one thread while signals are handed out in another.

    Args:
        teacher: any kind.
        settings: ``signal``, ``topk``, ``store_bytes``.
        name: of the teacher in the run.

    Raises:
        TeacherError: the teacher cannot give the signal the settings ask for.
    """

    def __init__(self, teacher: Teacher, settings: TeacherSettings, name: str = "teacher") -> None:
        self._teacher = teacher
        self._name = name
        self._settings = settings
        self._info = teacher.info()
        check_info(self._info, signal=settings.signal.value, topk=settings.topk)
        self._store = SignalStore(settings.store_bytes)

    def info(self) -> TeacherInfo:
        """What the teacher says about itself."""
        return self._info

    def score(self, requests: Sequence[ScoreRequest]) -> list[RolloutScores]:
        """Per-token scores of each request, in order; their signals stay here.

        Raises:
            TeacherError: a request the teacher cannot serve, or an answer against the contract.
        """
        for request in requests:
            check_request(self._info, request)
        answers = self._teacher.score(requests)
        check_answers(
            self._info,
            requests,
            answers,
            signal=self._settings.signal.value,
            topk=self._settings.topk,
        )
        scores = [
            _scores(request, answer) for request, answer in zip(requests, answers, strict=True)
        ]
        for answer in answers:
            signal = answer.signal
            if isinstance(signal, HiddenSignal):
                signal = replace(signal, teacher=self._name)
            self._store.put(answer.rollout_id, signal)
        return scores

    def take(self, keep: Mapping[str, np.ndarray], *, forget: bool = True) -> dict[str, Signal]:
        """The kept rows ([n] int32) of each rollout's signal; those rollouts are then forgotten.

        Raises:
            TeacherError: no signal is held for a rollout, or a row lies outside its response.
        """
        return self._store.take(keep) if forget else self._store.rows(keep)

    def forget(self, rollout_ids: Iterable[str]) -> None:
        """Free signals that nobody will ask for.

        Raises:
            TeacherError: no signal is held for one of them.
        """
        self._store.forget(rollout_ids)

    def output_head(self) -> tuple[HeadPart, ...]:
        """The output layer for the hidden signal: one part, or one a member of an ensemble.

        Raises:
            TeacherError: this kind of teacher has none to give, or one of another shape.
        """
        if isinstance(self._teacher, MixtureTeacher):
            return self._teacher.head_parts()
        if not isinstance(self._teacher, HeadTeacher):
            raise TeacherError(
                f"teacher {self._info.name!r} has no output_head(): set teacher.signal to topk"
            )
        weight, bias = self._teacher.output_head()
        expected = (self._info.vocab_size, self._info.hidden_size)
        if weight.shape != expected or (bias is not None and bias.shape != expected[:1]):
            raise TeacherError(
                f"teacher {self._info.name!r}: output_head() has shape {weight.shape}, "
                f"bias {None if bias is None else bias.shape}; its info() says {expected}"
            )
        return (HeadPart(weight, bias),)

    def close(self) -> None:
        """Let the teacher go."""
        self._teacher.close()


def _scores(request: ScoreRequest, answer: TeacherAnswer) -> RolloutScores:
    student, own = request.student_topk, answer.topk
    try:
        streamed = streamed_scores(
            student.ids,
            student.logprobs,
            answer.at_student_topk,
            None if own is None else own.ids,
            None if own is None else own.logprobs,
        )
    except ValueError as error:
        raise TeacherError(f"rollout {request.rollout_id!r}: {error}") from error
    return RolloutScores(
        rollout_id=request.rollout_id,
        reverse_kl=streamed.reverse_kl_m,
        forward_kl=streamed.forward_kl_m,
        jsd=streamed.jsd_m,
        teacher_logprob=answer.logprob,
        teacher_mass=streamed.teacher_mass_m,
        teacher_entropy=answer.entropy,
        union_forward_kl=streamed.union_forward_kl_m,
        retries=answer.retries,
    )
