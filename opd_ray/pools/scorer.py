"""Rollouts scored as they stream, for training and for evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from opd_ray.errors import RunError
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import Rollout, RolloutRequest, RolloutScores, Sampling, TrainItem

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

    @property
    def teacher_alone_seconds(self) -> float:
        """From the last rollout written to the last one scored."""
        return float(self.scored_R.max() - self.written_R.max())

    def forget_scores(self) -> None:
        """Let go of what the teachers said of each rollout, once that is joined."""
        for one in self.rollouts:
            one.scores.columns.clear()


class BatchUnderWay:
    """A batch that is being written and scored: it fills whenever the watch waits for anything."""

    def __init__(
        self,
        scorer: RolloutScorer,
        requests: Sequence[RolloutRequest],
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Drops,
    ) -> None:
        self._scorer = scorer
        self._requests = {request.rollout_id: request for request in requests}
        self._teacher_prompts = teacher_prompts
        self._drops = drops
        self._begin = time.perf_counter()
        self._rollouts: dict[str, Rollout] = {}
        self._scores: dict[str, RolloutScores] = {}
        self._written: dict[str, float] = {}  # seconds from the begin
        self._scored: dict[str, float] = {}
        self._untaken: list[str] = []  # scored, and not taken by take_scored
        self._untaken_tokens = 0
        self._done = False

    @property
    def done(self) -> bool:
        """Whether everything is written and scored, and the engines are at rest or at other work.

        What was seen to be done stays so, whatever is written next.
        """
        if not self._done:
            whole = len(self._scores) == len(self._requests)
            self._done = whole and not self._scorer.rollouts.busy
        return self._done

    def result(self, *, interruptible: bool = True) -> ScoredBatch:
        """Waits until it is done.

        Raises:
            RunError: see :meth:`RolloutScorer.start`.
            ActorFailure, StallError, Interrupted: see :meth:`ActorWatch.wait_until`.
        """
        if not self.done:  # what is done already is not lost by a stop
            self._scorer.watch.wait_until(
                lambda: self.done, "rollouts and the teacher's scores", interruptible=interruptible
            )
        return ScoredBatch(
            [ScoredRollout(self._rollouts[key], self._scores[key]) for key in self._requests],
            np.array([self._written[key] for key in self._requests]),
            np.array([self._scored[key] for key in self._requests]),
        )

    def wait_for_tokens(self, tokens: int) -> bool:
        """Wait until rollouts of so many tokens are scored and not taken, or all is done.

        Returns:
            True: there are as many.

        Raises:
            As :meth:`result`.
        """
        self._scorer.watch.wait_until(
            lambda: self.done or self._untaken_tokens >= tokens,
            "rollouts and the teacher's scores",
            interruptible=True,
        )
        return not self.done

    def take_scored(self) -> list[ScoredRollout]:
        """The rollouts that have been scored since the last call, in the order of their scores."""
        taken = [ScoredRollout(self._rollouts[key], self._scores[key]) for key in self._untaken]
        self._untaken, self._untaken_tokens = [], 0
        return taken

    def written(self, rollouts: Sequence[Rollout]) -> None:
        """Rollouts have been written: a teacher is to score them."""
        now = time.perf_counter() - self._begin
        for rollout in rollouts:
            request = self._requests[rollout.rollout_id]
            if self._drops(request, rollout):
                rollout = rollout.dropped()
            self._rollouts[rollout.rollout_id] = rollout
            self._written[rollout.rollout_id] = now
            if not rollout.written_tokens:
                self.scored(RolloutScores(rollout.rollout_id, {}))
                continue
            self._scorer.teachers.pool_for(rollout, request.source).submit(
                rollout, _teacher_prompt(rollout, request, self._teacher_prompts)
            )
        if len(self._rollouts) == len(self._requests):
            self._scorer.teachers.writing(False)

    def scored(self, scores: RolloutScores) -> None:
        """A rollout has been scored."""
        self._scores[scores.rollout_id] = scores
        self._scored[scores.rollout_id] = time.perf_counter() - self._begin
        self._untaken.append(scores.rollout_id)
        self._untaken_tokens += self._rollouts[scores.rollout_id].text_tokens


@dataclass
class RolloutScorer:
    """Streams requests through student and teachers.

    There is no barrier between them, but for a teacher that is to wait (``teacher.when``).
    """

    watch: ActorWatch
    rollouts: RolloutPool
    teachers: TeacherRouter
    _batch: BatchUnderWay | None = field(default=None, init=False)  # the last one

    def start(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Drops = lambda request, rollout: False,
    ) -> BatchUnderWay:
        """Begin to have every response written and scored; one batch at a time.

        Args:
            requests: the responses wanted.
            sampling: how the student samples.
            teacher_prompts: the teacher's prompt by prompt id ([P] int32) where it is not the
                student's.
            drops: whether none of a rollout's tokens is to be scored or trained on.

        Raises:
            RunError: later, while the watch waits: an environment began with another prompt than
                its row's, and the row has a teacher's prompt.
        """
        batch = self._open(requests, teacher_prompts, drops)
        self.rollouts.start(requests, sampling, batch.written, record=True)
        return batch

    def start_written(
        self,
        requests: Sequence[RolloutRequest],
        rollouts: Sequence[Rollout],
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Drops,
    ) -> BatchUnderWay:
        """As :meth:`start`, where all rollouts have been written before: they are scored."""
        batch = self._open(requests, teacher_prompts, drops)
        batch.written(rollouts)
        return batch

    def _open(
        self,
        requests: Sequence[RolloutRequest],
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Drops,
    ) -> BatchUnderWay:
        if self._batch is not None and not self._batch.done:
            raise RuntimeError("the last batch is not written and scored yet")
        batch = self._batch = BatchUnderWay(self, requests, teacher_prompts, drops)
        for pool in self.teachers.pools.values():
            pool.deliver = batch.scored
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
