"""Rollouts scored as they stream, for training and for evaluation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from opd_ray.errors import RunError
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.turns import Order
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import Rollout, RolloutRequest, RolloutScores, Sampling, TrainItem

# Of both, at every token of a rollout that is shown from close by.
SHOWN_LIKELIEST = 5
# Whether none of the tokens of a request's rollout is to be scored or trained on.
Drops = Callable[[RolloutRequest, Rollout], bool]


@dataclass(frozen=True)
class ScoredRollout:
    """A finished rollout and the teacher's scores of it; its signal stays with the teacher.

    No teacher is asked about a rollout of which the student wrote nothing: it has no scores.
    """

    rollout: Rollout
    scores: RolloutScores

    def kept(self, weights_m: np.ndarray) -> TrainItem:
        """The rows with a weight above 0, to be trained on."""
        rollout = self.rollout
        rows = np.flatnonzero(weights_m).astype(np.int32)
        return TrainItem(
            rollout_id=rollout.rollout_id,
            prompt_ids=rollout.prompt_ids,
            response_ids=rollout.response_ids,
            rows=rows,
            weights=weights_m[rows].astype(np.float32),
            rollout_logprob=rollout.logprob[rows],
        )

    def whole(self) -> TrainItem:
        """All tokens that the student wrote itself, to be scored."""
        return self.kept(self.rollout.response_mask)


@dataclass(frozen=True)
class ScoredBatch:
    """The R rollouts of a batch, in the order of its requests."""

    rollouts: list[ScoredRollout]
    written_R: np.ndarray  # [R] seconds from the batch's begin till each was written
    scored_R: np.ndarray  # [R] seconds from the batch's begin till each was scored
    begin: float = 0.0  # of the batch, seconds of the monotonic clock

    @property
    def teacher_alone_seconds(self) -> float:
        """From the last rollout written to the last one scored."""
        return float(self.scored_R.max() - self.written_R.max())

    def forget_scores(self) -> None:
        """Let go of what the teachers said of each rollout, once that is joined."""
        for one in self.rollouts:
            one.scores.columns.clear()


class BatchUnderWay:
    """A batch that is being written and scored: it fills whenever the watch waits for anything.

    A rollout whose top-K died with the actor that wrote it, before a teacher had read it, is
    written and scored anew, as if it had never been there. One that has been handed out already
    (:meth:`result`, :meth:`next_wave`) has to come out the same, as it does unless two tokens
    were likely within rounding error: its signal alone is made anew.
    """

    def __init__(
        self,
        scorer: RolloutScorer,
        requests: Sequence[RolloutRequest],
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Drops,
        close_ups: Collection[str],
    ) -> None:
        self._scorer = scorer
        self._close_ups = close_ups
        self._requests = {request.rollout_id: request for request in requests}
        self._teacher_prompts = teacher_prompts
        self._drops = drops
        self._begin = time.perf_counter()
        self._rollouts: dict[str, Rollout] = {}
        self._scores: dict[str, RolloutScores] = {}
        self._written: dict[str, float] = {}  # seconds from the begin
        self._scored: dict[str, float] = {}
        self._untaken: list[str] = []  # scored, and in no wave
        self._untaken_tokens = 0
        self._in_order = deque(self._requests)  # those behind them, where waves are fixed
        self._handed_out: set[str] = set()
        self._done = False
        self._version: int | None = None  # of the weights that its first rollout was written with
        self.was_done = False  # whatever has been lost since

    def __contains__(self, rollout_id: str) -> bool:
        """Whether this batch asks for a rollout."""
        return rollout_id in self._requests

    @property
    def done(self) -> bool:
        """Whether everything is written and scored, and the engines are at rest or at other work.

        What was seen to be done stays so, whatever is written next, unless data of it is lost.
        """
        if not self._done:
            whole = len(self._scores) == len(self._requests)
            self._done = whole and not self._scorer.rollouts.busy
            self.was_done |= self._done
        return self._done

    def result(self, *, interruptible: bool = True) -> ScoredBatch:
        """Waits until it is done, and hands all of it out.

        Raises:
            As :meth:`wait`.
        """
        self.wait(interruptible=interruptible)
        self._handed_out.update(self._requests)
        return ScoredBatch(
            [ScoredRollout(self._rollouts[key], self._scores[key]) for key in self._requests],
            np.array([self._written[key] for key in self._requests]),
            np.array([self._scored[key] for key in self._requests]),
            self._begin,
        )

    def wait(self, *, interruptible: bool = True) -> None:
        """Waits until it is done.

        Raises:
            RunError: see :meth:`RolloutScorer.start`.
            ActorFailure, StallError, Interrupted: see :meth:`ActorWatch.wait_until`.
        """
        if not self.done:  # what is done already is not lost by a stop
            self._scorer.order.until(
                lambda: self.done, "rollouts and the teacher's scores", interruptible=interruptible
            )

    def counts(self) -> tuple[int, int, int]:
        """Rollouts written, scored, and asked for."""
        return len(self._rollouts), len(self._scores), len(self._requests)

    def rollouts(self) -> list[Rollout]:
        """Those of a batch that is done, in the order of its requests."""
        return [self._rollouts[key] for key in self._requests]

    def next_wave(self, tokens: int) -> list[ScoredRollout]:
        """Wait until rollouts of so many tokens are scored and in no wave, or all is done.

        Returns:
            All of these, in the order of their scores; nothing when all is done. In a scorer with
            fixed waves the first ones among the requests that have so many tokens, however many
            more are scored; nothing when all is done and the rest has fewer.

        Raises:
            As :meth:`wait`.
        """
        fixed = self._scorer.fixed_waves
        self._scorer.watch.wait_until(
            lambda: self.done or self._untaken_tokens >= tokens,
            "rollouts and the teacher's scores",
            interruptible=True,
        )
        if self._untaken_tokens < tokens or (self.done and not fixed):
            return []
        count = self._count_of(tokens) if fixed else len(self._untaken)
        taken, self._untaken = self._untaken[:count], self._untaken[count:]
        self._handed_out.update(taken)
        self._untaken_tokens -= sum(self._rollouts[key].text_tokens for key in taken)
        return [ScoredRollout(self._rollouts[key], self._scores[key]) for key in taken]

    def _count_of(self, tokens: int) -> int:
        """How many of the first untaken ones have as many tokens."""
        found = 0
        for count, key in enumerate(self._untaken, start=1):
            found += self._rollouts[key].text_tokens
            if found >= tokens:
                return count
        return len(self._untaken)

    def written(self, rollouts: Sequence[Rollout]) -> None:
        """Rollouts have been written: a teacher is to score them.

        Raises:
            RunError: one was written again with newer weights, where the same bits are wanted.
        """
        now = time.perf_counter() - self._begin
        for rollout in rollouts:
            request = self._requests[rollout.rollout_id]
            if self._drops(request, rollout):
                rollout = rollout.dropped()
            if rollout.rollout_id in self._handed_out:
                self._again(rollout, request)
                continue
            self._check_version(rollout)
            self._rollouts[rollout.rollout_id] = rollout
            self._written[rollout.rollout_id] = now
            if not rollout.written_tokens:
                self._scorer.teachers.skip(rollout.rollout_id, request.source)
                self.scored(RolloutScores(rollout.rollout_id, {}))
                continue
            self._submit(rollout, request)
        if len(self._rollouts) == len(self._requests):
            self._scorer.teachers.writing(False)

    def _check_version(self, rollout: Rollout) -> None:
        """Newer weights come to the engines only between what the first and the second wrote."""
        if self._version is None:
            self._version = rollout.weights_version
        elif self._scorer.fixed_waves and rollout.weights_version != self._version:
            raise RunError(
                f"rollout {rollout.rollout_id!r}: the rollout actor that wrote it and the teacher "
                "that read it died after its weights had been followed by newer ones, and written "
                "again with those it is another (run.deterministic = true); run the same command "
                "to go on from the last checkpoint"
            )

    def not_read(self, rollout_ids: Sequence[str]) -> list[str]:
        """The actor that wrote these rollouts has died: those that no teacher has been sent.

        They are to be written again.
        """
        lost = self._scorer.teachers.lose(rollout_ids)
        self._forget(lost)
        return lost

    def lost(self, rollout_ids: Sequence[str]) -> None:
        """A teacher found the top-Ks of these rollouts lost: have them written again."""
        self._forget(rollout_ids)
        self._scorer.rollouts.write_again(rollout_ids)

    def _forget(self, rollout_ids: Sequence[str]) -> None:
        """As if these had not been written, unless somebody has them already."""
        forgotten = [key for key in rollout_ids if key not in self._handed_out]
        for key in forgotten:
            if self._scores.pop(key, None) and key in self._untaken:
                self._untaken.remove(key)
                self._untaken_tokens -= self._rollouts[key].text_tokens
            del self._rollouts[key]
            self._done = False
        if forgotten and self._scorer.fixed_waves:
            self._in_order = deque(key for key in self._requests if key not in self._handed_out)
            self._untaken, self._untaken_tokens = [], 0
            self._advance()
        self._scorer.teachers.drop(forgotten)

    def _again(self, rollout: Rollout, request: RolloutRequest) -> None:
        """A rollout that somebody has already was written again, for the sake of its top-K.

        Raises:
            RunError: it came out differently.
        """
        before = self._rollouts[rollout.rollout_id]
        if not np.array_equal(before.response_ids, rollout.response_ids):
            raise RunError(
                f"rollout {rollout.rollout_id!r}: the rollout actor that wrote it and the teacher "
                "that read it died while it was trained on, and written again it came out "
                "differently; run the same command to go on from the last checkpoint"
            )
        if rollout.rollout_id in self._scorer.teachers:  # else it has been given up since
            self._submit(replace(before, topk=rollout.topk), request)

    def _submit(self, rollout: Rollout, request: RolloutRequest) -> None:
        self._scorer.teachers.pool_for(rollout, request.source).submit(
            rollout,
            _teacher_prompt(rollout, request, self._teacher_prompts),
            SHOWN_LIKELIEST if rollout.rollout_id in self._close_ups else 0,
        )

    def scored(self, scores: RolloutScores) -> None:
        """A rollout has been scored."""
        self._scores[scores.rollout_id] = scores
        self._scored[scores.rollout_id] = time.perf_counter() - self._begin
        if not self._scorer.fixed_waves:
            self._may_be_taken(scores.rollout_id)
            return
        self._advance()

    def _advance(self) -> None:
        """Scored rollouts may be taken once all before them may."""
        while self._in_order and self._in_order[0] in self._scores:
            self._may_be_taken(self._in_order.popleft())

    def _may_be_taken(self, rollout_id: str) -> None:
        self._untaken.append(rollout_id)
        self._untaken_tokens += self._rollouts[rollout_id].text_tokens


@dataclass
class RolloutScorer:
    """Streams requests through student and teachers.

    There is no barrier between them, but for a teacher that is to wait (``teacher.when``).
    """

    watch: ActorWatch
    rollouts: RolloutPool
    teachers: TeacherRouter
    order: Order  # in which roles work
    # Which rollouts are in a wave follows from their lengths alone (run.deterministic).
    fixed_waves: bool = False
    _batch: BatchUnderWay | None = field(default=None, init=False)  # the last one

    def counts(self) -> tuple[int, int, int] | None:
        """Of the last batch: rollouts written, scored, and asked for; None: there was none."""
        return None if self._batch is None else self._batch.counts()

    def lost(self, rollout_ids: Sequence[str]) -> None:
        """A teacher found the top-Ks of these rollouts lost.

        Raises:
            RunError: other rollouts, of the next step or of an evaluation, are being written
                by now, perhaps with other weights.
        """
        batch = self._batch
        if batch is None or not all(key in batch and key in self.rollouts for key in rollout_ids):
            raise RunError(
                f"rollout {rollout_ids[0]!r}: the rollout actor that wrote it and the teacher that "
                "read it died before it had been trained on, and other ones are being written by "
                "now; run the same command to go on from the last checkpoint"
            )
        batch.lost(rollout_ids)

    def start(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Drops = lambda request, rollout: False,
        close_ups: Collection[str] = (),
    ) -> BatchUnderWay:
        """Begin to have every response written and scored; one batch at a time.

        Args:
            requests: the responses wanted.
            sampling: how the student samples.
            teacher_prompts: the teacher's prompt by prompt id ([P] int32) where it is not the
                student's.
            drops: whether none of a rollout's tokens is to be scored or trained on.
            close_ups: rollouts whose scores come with their likeliest tokens.

        Raises:
            RunError: later, while the watch waits: an environment began with another prompt than
                its row's, and the row has a teacher's prompt.
        """
        self.order.to("rollout")
        batch = self._open(requests, teacher_prompts, drops, close_ups)
        self.rollouts.start(requests, sampling, batch.written, record=True, lost=batch.not_read)
        return batch

    def start_written(
        self,
        requests: Sequence[RolloutRequest],
        rollouts: Sequence[Rollout],
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Drops,
        close_ups: Collection[str],
    ) -> BatchUnderWay:
        """As :meth:`start`, where all rollouts have been written before: they are scored."""
        batch = self._open(requests, teacher_prompts, drops, close_ups)
        batch.written(rollouts)
        return batch

    def abandon(self) -> None:
        """Give up what is being written and scored, and all that teachers hold."""
        self._batch = None
        self.rollouts.abandon()
        self.teachers.abandon()

    def _open(
        self,
        requests: Sequence[RolloutRequest],
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Drops,
        close_ups: Collection[str],
    ) -> BatchUnderWay:
        if self._batch is not None and not self._batch.done:
            if not self._batch.was_done:
                raise RuntimeError("the last batch is not written and scored yet")
            self._batch.wait(interruptible=False)  # for what was lost of it since
        batch = self._batch = BatchUnderWay(self, requests, teacher_prompts, drops, close_ups)
        for pool in self.teachers.pools.values():
            pool.deliver, pool.lost = batch.scored, self.lost
        self.teachers.expect([(request.rollout_id, request.source) for request in requests])
        self.teachers.writing(True)
        return batch


def _teacher_prompt(
    rollout: Rollout, request: RolloutRequest, teacher_prompts: Mapping[str, np.ndarray]
) -> np.ndarray:
    own = teacher_prompts.get(rollout.prompt_id)
    if own is None:
        return rollout.prompt_ids
    if not np.array_equal(rollout.prompt_ids, request.prompt_ids):
        raise RunError(
            f"prompt {rollout.prompt_id!r} has a teacher's prompt of its own, and its environment "
            "began with other messages than the row's: the two cannot go together; set "
            "data.fields.teacher_prompt to null, or let reset return the row's prompt"
        )
    return own
