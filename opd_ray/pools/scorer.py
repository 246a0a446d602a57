"""Rollouts scored as they stream, for training and for evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opd_ray.errors import RunError
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import Rollout, RolloutRequest, RolloutScores, Sampling, TrainItem


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
    """The rollouts of a batch, in the order of its requests."""

    rollouts: list[ScoredRollout]
    teacher_alone_seconds: float  # from the last rollout written to the last one scored


@dataclass
class RolloutScorer:
    """Streams requests through student and teachers, with no barrier between them."""

    watch: ActorWatch
    rollouts: RolloutPool
    teachers: TeacherRouter

    def score(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        teacher_prompts: Mapping[str, np.ndarray],
        drops: Callable[[RolloutRequest, Rollout], bool] = lambda request, rollout: False,
    ) -> ScoredBatch:
        """Every response with its scores.

        Args:
            requests: the responses wanted.
            sampling: how the student samples.
            teacher_prompts: the teacher's prompt by prompt id ([P] int32) where it is not the
                student's.
            drops: whether none of a rollout's tokens is to be scored or trained on.

        Raises:
            RunError: an environment began with another prompt than its row's, and the row has a
                teacher's prompt.
        """
        written: float | None = None
        asked = {request.rollout_id: request for request in requests}
        pools = self.teachers.pools.values()
        rollouts: dict[str, Rollout] = {}
        scores: dict[str, RolloutScores] = {}
        self.rollouts.start(requests, sampling, record=True)
        while len(scores) < len(requests) or self.rollouts.streams:
            scoring = {ref: pool for pool in pools for ref in pool.pending_refs()}
            ready = self.watch.wait(
                [*self.rollouts.streams, *scoring],
                "rollouts and the teacher's scores",
                interruptible=True,
            )
            for ref in ready:
                if ref in scoring:
                    scores |= {found.rollout_id: found for found in scoring[ref].collect(ref)}
                else:
                    for written_now in self.rollouts.collect(ref):
                        rollout, request = written_now, asked[written_now.rollout_id]
                        if drops(request, rollout):
                            rollout = rollout.dropped()
                        rollouts[rollout.rollout_id] = rollout
                        if len(rollouts) == len(requests):
                            written = time.perf_counter()
                        if not len(rollout.rows):
                            scores[rollout.rollout_id] = RolloutScores(rollout.rollout_id, {})
                            continue
                        self.teachers.pool_for(rollout, request.source).submit(
                            rollout, _teacher_prompt(rollout, request, teacher_prompts)
                        )
                for pool in pools:
                    pool.pump()
        alone = 0.0 if written is None else time.perf_counter() - written
        return ScoredBatch(
            [ScoredRollout(rollouts[r.rollout_id], scores[r.rollout_id]) for r in requests], alone
        )


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
