"""What a teacher actor does, without Ray: checked scoring, scores out, signals held back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.teacher.contract.answers import (
    check_answers,
    check_info,
    check_request,
    checked_head,
)
from actors.teacher.contract.rows import ask
from actors.teacher.likeliest import likeliest_tokens
from actors.teacher.protocol import MixtureTeacher, SleepingTeacher, Teacher, TeacherError
from actors.teacher.support import asked_of_teacher, signal_of
from opd_ray.config.choices import SignalChoice, Support
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import Asleep
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
    """One teacher and the ``signals`` it holds.

    Scoring may run in one thread while signals are handed out in another.

    Args:
        teacher: any kind.
        settings: ``signal``, ``topk``, ``store_bytes``, ``name``.
        support: whose tokens signals of kind topk name; of others it says nothing.

    Raises:
        TeacherError: the teacher cannot give the signal that is asked for.
    """

    def __init__(
        self, teacher: Teacher, settings: TeacherSettings, support: Support = Support.teacher
    ) -> None:
        self._teacher = teacher
        self._settings = asked_of_teacher(settings, support)
        by_topk = settings.signal is SignalChoice.topk
        self._support = support if by_topk else Support.teacher
        self._asleep = False
        self._info = teacher.info()
        check_info(self._info, self._settings, self._support)
        self.signals = SignalStore(settings.store_bytes, f"{settings.key}.store_bytes")

    def info(self) -> TeacherInfo:
        """What the teacher says about itself."""
        return self._info

    def sleep(self) -> None:
        """Have a teacher that can give its memory back do so; signals stay at hand."""
        if isinstance(self._teacher, SleepingTeacher) and not self._asleep:
            self._teacher.sleep()
            self._asleep = True

    def wake(self) -> None:
        """Have it take its memory again."""
        if isinstance(self._teacher, SleepingTeacher) and self._asleep:
            self._teacher.wake()
            self._asleep = False

    def at_hand(self, what: str) -> Teacher:
        """The teacher, which is asked for something.

        Raises:
            Asleep: it has given its memory back.
        """
        if self._asleep:
            raise Asleep(f"teacher {self._info.name!r}", what)
        return self._teacher

    def score(self, requests: Sequence[ScoreRequest]) -> list[RolloutScores]:
        """Scores of the asked rows of each request, in order; their signals stay here.

        Raises:
            Asleep: see :meth:`at_hand`.
            TeacherError: a request the teacher cannot serve, or an answer against the contract.
        """
        for request in requests:
            check_request(self._info, request)
        answers = ask(self.at_hand("scores"), self._info, requests)
        check_answers(self._info, requests, answers, self._settings)
        scores = [
            _scores(request, answer) for request, answer in zip(requests, answers, strict=True)
        ]
        who = f"teacher {self._info.name!r}"
        for request, answer in zip(requests, answers, strict=True):
            signal = signal_of(who, request, answer, self._support)
            if isinstance(signal, HiddenSignal):
                signal = replace(signal, teacher=self._settings.name)
            self.signals.put(answer.rollout_id, signal, request.rows)
        return scores

    def output_head(self) -> tuple[HeadPart, ...]:
        """The output layer for the hidden signal: one part, or one a member of an ensemble.

        Raises:
            TeacherError: this kind of teacher has none to give, or one of another shape.
        """
        teacher = self.at_hand("its output head")
        if isinstance(teacher, MixtureTeacher):
            return teacher.head_parts()
        return (HeadPart(*checked_head(teacher)),)

    def close(self) -> None:
        """Let the teacher go."""
        self._teacher.close()


def _scores(request: ScoreRequest, answer: TeacherAnswer) -> RolloutScores:
    streamed = streamed_scores(request.student_topk, answer.at_student_topk, answer.topk)
    columns = streamed.columns() | {"teacher_logprob": answer.logprob}
    if answer.entropy is not None:
        columns["teacher_entropy"] = answer.entropy
    shown = likeliest_tokens(request, answer) if request.likeliest else None
    return RolloutScores(request.rollout_id, columns, answer.retries, shown)


@dataclass(frozen=True)
class _Held:
    """The signal of a rollout's n asked rows."""

    signal: Signal
    asked: np.ndarray | None  # [n] response positions, ascending; None: row t is at position t

    def rows(self, rollout_id: str, positions: np.ndarray) -> Signal:
        """Those of the given response positions, copied.

        Raises:
            TeacherError: one that was not asked about.
        """
        index = positions
        if self.asked is not None:
            index = np.searchsorted(self.asked, positions)
            found = self.asked[np.minimum(index, len(self.asked) - 1)] == positions
            if not found.all():
                raise TeacherError(
                    f"rollout {rollout_id!r}, position {positions[found.argmin()]}: its signal has "
                    "no row of this token, which the student did not write"
                )
        try:
            return self.signal.rows(index)
        except IndexError as error:
            raise TeacherError(f"rollout {rollout_id!r}: {error} (rows of its signal)") from error


class SignalStore:
    """Signals by rollout id, bounded in bytes. Safe to use from several threads.

    Args:
        max_bytes: what all signals together may take; more is an error, not an eviction.
        key: what sets it in the configuration, for messages.

    Attributes:
        nbytes: held now.
    """

    def __init__(self, max_bytes: int, key: str = "teacher.store_bytes") -> None:
        self._max_bytes = max_bytes
        self._key = key
        self._held: dict[str, _Held] = {}
        self.nbytes = 0
        self._lock = threading.Lock()

    def put(self, rollout_id: str, signal: Signal, asked: np.ndarray | None = None) -> None:
        """Hold a signal; a second one for the same rollout replaces the first.

        Args:
            rollout_id: whose.
            signal: n rows.
            asked: [n] int32, ascending, their response positions; None: they are all m.

        Raises:
            TeacherError: the store is full.
        """
        with self._lock:
            replaced = self._held.get(rollout_id)
            total = self.nbytes + signal.nbytes - (replaced.signal.nbytes if replaced else 0)
            if total > self._max_bytes:
                raise TeacherError(
                    f"rollout {rollout_id!r}: its signal of {signal.nbytes} bytes does not fit; "
                    f"{len(self._held)} rollouts hold {self.nbytes} of {self._max_bytes} bytes "
                    f"(raise {self._key}, add replicas, ask fewer rollouts a step, or use "
                    "the topk signal)"
                )
            # Copied: what came through Ray's object store would stay there as long as it is held.
            self._held[rollout_id] = _Held(signal, None if asked is None else asked.copy())
            self.nbytes = total

    def take(self, keep: Mapping[str, np.ndarray], *, forget: bool = True) -> dict[str, Signal]:
        """Copies of the rows at the named response positions ([n] int); then ``forget`` them.

        Raises:
            TeacherError: a rollout whose signal is not held, or a position outside its response or
                that was not asked about.
        """
        with self._lock:
            self._require(keep)
            taken = {key: self._held[key].rows(key, index) for key, index in keep.items()}
        if forget:
            self.forget(keep)
        return taken

    def forget(self, rollout_ids: Iterable[str]) -> None:
        """Free the signals of these rollouts.

        Raises:
            TeacherError: one of them is not held; then none is freed.
        """
        ids = list(rollout_ids)
        with self._lock:
            self._require(ids)
            for rollout_id in ids:
                self.nbytes -= self._held.pop(rollout_id).signal.nbytes

    def forget_all(self) -> None:
        """Free every signal."""
        with self._lock:
            self._held.clear()
            self.nbytes = 0

    def _require(self, rollout_ids: Iterable[str]) -> None:
        missing = [key for key in rollout_ids if key not in self._held]
        if missing:
            raise TeacherError(
                f"no signal is held for rollout {missing[0]!r} (and {len(missing) - 1} more): "
                "never scored here, or already taken or forgotten"
            )
