"""Rollouts scored as they stream, for training and for evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opd_ray.pools.rollouts import RolloutPool, RolloutStream
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import Rollout, RolloutRequest, RolloutScores, Sampling, TrainItem


@dataclass(frozen=True)
class ScoredRollout:
    """A finished rollout and the teacher's scores of it; its signal stays with the teacher."""

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


class RolloutScorer(RolloutStream):
    """Streams requests through student and teacher, with no barrier between them."""

    def __init__(self, watch: ActorWatch, rollouts: RolloutPool, teachers: TeacherRouter) -> None:
        super().__init__(watch, rollouts)
        self._teachers = teachers
        # Of the last call of score: from the last rollout written to the last one scored.
        self.teacher_alone_seconds = 0.0

    def score(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        teacher_prompts: Mapping[str, np.ndarray],
    ) -> list[ScoredRollout]:
        """Every response with its scores, in the order of the requests.

        Args:
            requests: the responses wanted.
            sampling: how the student samples.
            teacher_prompts: the teacher's prompt of each prompt id ([P] int32).
        """
        written: float | None = None
        sources = {request.rollout_id: request.source for request in requests}
        self._rollouts.start(requests, sampling, record=True)
        rollouts: dict[str, Rollout] = {}
        scores: dict[str, RolloutScores] = {}
        while len(scores) < len(requests) or self._rollouts.streams:
            self._teachers.pump()
            scoring = self._teachers.pending_refs()
            ready = self._watch.wait(
                [*self._rollouts.streams, *scoring],
                "rollouts and the teacher's scores",
                interruptible=True,
            )
            if ready in self._rollouts.streams:
                for rollout in self._next(ready):
                    rollouts[rollout.rollout_id] = rollout
                    if len(rollouts) == len(requests):
                        written = time.perf_counter()
                    self._teachers.submit(
                        rollout, sources[rollout.rollout_id], teacher_prompts[rollout.prompt_id]
                    )
            else:
                for found in self._teachers.collect(ready):
                    scores[found.rollout_id] = found
        self.teacher_alone_seconds = 0.0 if written is None else time.perf_counter() - written
        return [ScoredRollout(rollouts[r.rollout_id], scores[r.rollout_id]) for r in requests]
