"""A teacher replica that waits as long as scoring would take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import ray
from pipeline_profiles import Profile
from waiting_actor import VOCAB_SIZE, WAITING_GROUPS, WaitingActor, drawn_columns, wait

from opd_ray.types import RolloutScores, SampledSignal, ScoreRequest, SignalReceipt, TeacherInfo


@ray.remote(concurrency_groups={**WAITING_GROUPS, "signals": 1})
class WaitingTeacher(WaitingActor):
    """A teacher replica that draws its scores from the rollout's name, the same in every run."""

    def __init__(self, profile: Profile, scale: int, gpus: float) -> None:
        super().__init__(profile, scale)
        self._gpus = max(1, int(gpus))
        self._signals: dict[str, SampledSignal] = {}

    def ready(self) -> TeacherInfo:
        """What it is."""
        return TeacherInfo("waiting", VOCAB_SIZE, 1 << 20, ("topk",))

    def score(self, requests: Sequence[ScoreRequest]) -> list[RolloutScores]:
        """Scores of each request, after the profile's time for all of them."""
        begin = time.monotonic()
        texts = sum(len(r.prompt_ids) + len(r.response_ids) for r in requests)
        wait(self._profile.scoring_seconds(texts * self._scale, self._gpus) / self._scale, begin)
        found = [self._scores(request) for request in requests]
        self._diary.busy.append((begin, time.monotonic()))
        return found

    @ray.method(concurrency_group="signals", num_returns=2)
    def take(
        self, keep: Mapping[str, np.ndarray], forget: bool = True
    ) -> tuple[dict[str, SampledSignal], SignalReceipt]:
        """As the teacher actor's, a number a row."""
        signals = {name: self._signals[name].rows(rows) for name, rows in keep.items()}
        if forget:
            self.forget(list(keep))
        rows = sum(len(rows) for rows in keep.values())
        return signals, SignalReceipt(rows, sum(signal.nbytes for signal in signals.values()))

    @ray.method(concurrency_group="signals")
    def forget(self, rollout_ids: Sequence[str]) -> None:
        """Free signals that nobody will ask for."""
        for name in rollout_ids:
            del self._signals[name]

    def _scores(self, request: ScoreRequest) -> RolloutScores:
        columns = drawn_columns(request.rollout_id, len(request.asked))
        self._signals[request.rollout_id] = SampledSignal(columns["teacher_logprob"])
        return RolloutScores(request.rollout_id, columns)
