"""Kind ``ensemble``: several teachers as one, whose distribution is their weighted mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.teacher.contract.answers import checked_head
from actors.teacher.contract.rows import ask
from actors.teacher.protocol import SleepingTeacher, Teacher, TeacherError
from opd_ray.config.choices import SignalChoice
from opd_ray.config.resolved_teachers import Member
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.tokenizer import fingerprints_may_differ
from opd_ray.types import (
    HeadPart,
    HiddenSignal,
    SampledSignal,
    ScoreRequest,
    Signal,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)


def mixed_logprobs(logprobs: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    """log sum share x p of the same tokens under every member, in the shape given; float32.

    Exact: a token's probability under the mixture follows from its probabilities alone.
    """
    weighted = [
        values.astype(np.float64) + np.log(share)
        for values, share in zip(logprobs, shares, strict=True)
    ]
    return np.logaddexp.reduce(weighted, axis=0).astype(np.float32)


def mixed_topk(
    tops: Sequence[TopK | TopKSignal], shares: Sequence[float], exact: TopK, k: int
) -> TopK:
    """The mixture's k likeliest tokens, as far as they can be known from lists of likeliest tokens.

    Candidates are the tokens of every list and those of ``exact``. The latter's log-probabilities
    are known. For another token, a member that does not list it counts as giving it nothing: what
    it does give stays in the tail, and is less than that member's last listed probability. So the
    mass named is never above the mixture's, token by token, and a token is wrongly left out only
    if all its unlisted mass would have made the difference.

    Args:
        tops: each member's likeliest tokens, [n, k_i], distinct within a row.
        shares: of the members in the mixture.
        exact: [n, E] tokens whose log-probability under the mixture is known; they may repeat, and
            come in any order.
        k: tokens wanted a row; at most as many as some list has.
    """
    ids = np.concatenate([top.ids for top in tops] + [exact.ids], axis=1).astype(np.int64)
    weighted = [
        share * np.exp(top.logprobs.astype(np.float64))
        for top, share in zip(tops, shares, strict=True)
    ]
    listed = np.concatenate([*weighted, np.zeros(exact.ids.shape)], axis=1)
    known = np.concatenate(
        [np.full(part.shape, -np.inf) for part in weighted] + [exact.logprobs.astype(np.float64)],
        axis=1,
    )
    order = np.argsort(ids, axis=1, kind="stable")
    ids, listed, known = (np.take_along_axis(a, order, axis=1) for a in (ids, listed, known))
    # Equal ids are neighbours now: each run is one candidate, held by its first place.
    first = np.ones(ids.shape, bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(first)  # row by row; a row's first place always starts a run
    mass = np.add.reduceat(listed.ravel(), starts)
    sure = np.maximum.reduceat(known.ravel(), starts)
    with np.errstate(divide="ignore"):
        value = np.where(np.isfinite(sure), sure, np.log(mass))
    candidates = np.full(ids.shape, -np.inf)
    candidates.ravel()[starts] = value
    likeliest = np.argsort(-candidates, axis=1, kind="stable")[:, :k]
    return TopK(
        ids=np.take_along_axis(ids, likeliest, axis=1).astype(np.int32),
        logprobs=np.take_along_axis(candidates, likeliest, axis=1).astype(np.float32),
    )


class Ensemble:
    """A teacher made of teachers (see :class:`actors.teacher.protocol.Teacher`).

    The log-probabilities of sampled tokens and of the student's top-K are those of the mixture. So
    is the hidden signal: the members' hidden states side by side, with one head a member. The top-k
    signal is a lower bound token by token (:func:`actors.teacher.kinds.ensemble.mixed_topk`). The
    mixture's entropy does not follow from the members': it is not given, except of one member.

    Args:
        members: each with its teacher, loaded.
        settings: of the ensemble: ``signal``, ``topk``; 0 makes answers without a signal.
        own_topk: how many of its own likeliest tokens each answer names beside the signal.

    Raises:
        TeacherError: members with different tokenizers or vocabularies, or without a head where
            the hidden signal needs it.
    """

    def __init__(
        self,
        members: Sequence[tuple[Member, Teacher]],
        settings: TeacherSettings,
        *,
        own_topk: int = 0,
    ) -> None:
        self._members = [member for member, _ in members]
        self._names = [member.name for member, _ in members]
        self._shares = [member.weight for member, _ in members]
        self._teachers = [teacher for _, teacher in members]
        self._settings = settings
        self._own_topk = own_topk
        self._infos = [teacher.info() for teacher in self._teachers]
        self._info = self._joined(self._infos)

    def info(self) -> TeacherInfo:
        """What the members have in common."""
        return self._info

    def sleep(self) -> None:
        """Have every member that can give its memory back."""
        for teacher in self._teachers:
            if isinstance(teacher, SleepingTeacher):
                teacher.sleep()

    def wake(self) -> None:
        """Have them take it again."""
        for teacher in self._teachers:
            if isinstance(teacher, SleepingTeacher):
                teacher.wake()

    def close(self) -> None:
        """Let every member go."""
        for teacher in self._teachers:
            teacher.close()

    def head_parts(self) -> tuple[HeadPart, ...]:
        """Every member's output head ([V, D_i], bias [V] or None) with its share."""
        return tuple(
            HeadPart(*checked_head(teacher, f"member {name!r}"), share)
            for name, share, teacher in zip(self._names, self._shares, self._teachers, strict=True)
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """One answer a request, from every member's answer to it."""
        by_member = [
            ask(teacher, info, requests)
            for teacher, info in zip(self._teachers, self._infos, strict=True)
        ]
        for name, answers in zip(self._names, by_member, strict=True):
            if [answer.rollout_id for answer in answers] != [r.rollout_id for r in requests]:
                raise TeacherError(f"member {name!r} did not answer every request in order")
        return [
            self._mixed(request, answers)
            for request, *answers in zip(requests, *by_member, strict=True)
        ]

    def _mixed(self, request: ScoreRequest, answers: Sequence[TeacherAnswer]) -> TeacherAnswer:
        logprob = mixed_logprobs([a.logprob for a in answers], self._shares)
        at_student = mixed_logprobs([a.at_student_topk for a in answers], self._shares)
        sampled_n1 = request.response_ids[request.asked, None]
        ids_nE = np.concatenate((request.student_topk.ids, sampled_n1), axis=1)
        exact = TopK(ids_nE, np.concatenate((at_student, logprob[:, None]), axis=1))
        own = None
        tops = [a.topk for a in answers if a.topk is not None]
        if self._own_topk and len(tops) == len(answers):
            own = mixed_topk(tops, self._shares, exact, self._own_topk)
        return TeacherAnswer(
            rollout_id=request.rollout_id,
            logprob=logprob,
            at_student_topk=at_student,
            signal=self._signal([a.signal for a in answers], logprob, exact),
            entropy=answers[0].entropy if len(answers) == 1 else None,
            topk=own,
            retries=sum(answer.retries for answer in answers),
        )

    def _signal(
        self, signals: Sequence[Signal | None], logprob: np.ndarray, exact: TopK
    ) -> Signal | None:
        if self._settings.signal is SignalChoice.sampled:
            return SampledSignal(logprob)
        if self._settings.signal is SignalChoice.topk and not self._settings.topk:
            return None
        hidden = [signal.hidden for signal in signals if isinstance(signal, HiddenSignal)]
        if self._settings.signal is SignalChoice.hidden and len(hidden) == len(signals):
            return HiddenSignal(np.concatenate(hidden, axis=1))
        tops = [signal for signal in signals if isinstance(signal, TopKSignal)]
        if self._settings.signal is SignalChoice.topk and len(tops) == len(signals):
            top = mixed_topk(tops, self._shares, exact, self._settings.topk)
            return TopKSignal(top.ids, top.logprobs)
        kinds = sorted({type(signal).__name__ for signal in signals})
        raise TeacherError(
            f"members {self._names} gave signals of kinds {kinds}; teacher.signal is "
            f"{self._settings.signal}"
        )

    def _joined(self, infos: Sequence[TeacherInfo]) -> TeacherInfo:
        for name, info in zip(self._names, infos, strict=True):
            # A server behind kind actor: what it bounds would enter the mixture as if it knew it.
            if info.meta.get("reads_student_logprobs"):
                raise TeacherError(
                    f"member {name!r} knows only bounds of some of the student's tokens: use it by "
                    "a route, or serve it with teacher.named_tokens of the whole vocabulary"
                )
        sizes = {name: info.vocab_size for name, info in zip(self._names, infos, strict=True)}
        if len(set(sizes.values())) > 1:
            raise TeacherError(f"members of one ensemble need one vocabulary, theirs are {sizes}")
        said = {info.tokenizer_hash for info in infos}
        hashes = said - {None}
        accepted = {kind for m in self._members for kind in m.settings.accept_mismatch}
        if len(hashes) > 1 and not fingerprints_may_differ(accepted):
            raise TeacherError(
                f"members {self._names} have tokenizers with the fingerprints "
                f"{sorted(map(str, hashes))}: use teachers with one tokenizer"
            )
        limits = [info.max_topk for info in infos if info.max_topk is not None]
        hidden = [info.hidden_size for info in infos if info.hidden_size is not None]
        return TeacherInfo(
            name=" + ".join(
                f"{share:.3g} {name}" for share, name in zip(self._shares, self._names, strict=True)
            ),
            vocab_size=infos[0].vocab_size,
            context_length=min(info.context_length for info in infos),
            signals=tuple(s for s in infos[0].signals if all(s in i.signals for i in infos)),
            hidden_size=sum(hidden) if len(hidden) == len(infos) else None,
            max_topk=min(limits) if limits else None,
            tokenizer_hash=said.pop() if len(said) == 1 else None,
            answers_rows=True,
            meta={"kind": "ensemble", "members": [info.meta for info in infos]},
        )
