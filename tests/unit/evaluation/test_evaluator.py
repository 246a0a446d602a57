"""Held-out divergence: which responses it is taken on, and which of their tokens count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from opd_ray.config.schema import Config, EvalSettings, EvalTask, RolloutSettings, RunSettings
from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.evaluation.evaluator import Evaluator
from opd_ray.pools.scorer import ScoredBatch, ScoredRollout
from opd_ray.pools.turns import AllAtOnce
from opd_ray.types import (
    Rollout,
    RolloutRequest,
    RolloutScores,
    Sampling,
    TrainItem,
)

# Two prompts; the second response has a token that a tool wrote.
MASKS = {"a": [1, 1, 1], "b": [1, 0]}
FORWARD_KL = {"a": [0.1, 0.2, 0.3], "b": [1.0]}
TOP1 = {"a": [True, False, True], "b": [False]}


class FakeScorer:
    """Writes the responses of MASKS and remembers how it was asked to."""

    asked: tuple[Sampling, list[int]]
    rollouts = None
    order = AllAtOnce(watch=None)  # type: ignore[arg-type]

    def start(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        teacher_prompts: Mapping[str, np.ndarray],
    ) -> Any:
        self.asked = sampling, [request.seed for request in requests]
        zero_R = np.zeros(len(requests))
        batch = ScoredBatch([self.scored(request) for request in requests], zero_R, zero_R)
        return SimpleNamespace(result=lambda: batch)

    @staticmethod
    def scored(request: RolloutRequest) -> ScoredRollout:
        mask = np.array(MASKS[request.prompt_id], np.uint8)
        rollout = Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            sample=request.sample,
            prompt_ids=request.prompt_ids,
            response_ids=np.arange(len(mask), dtype=np.int32),
            response_mask=mask,
            entropy=np.zeros(len(mask), np.float32),
            logprob=np.full(len(mask), -1.0, np.float32),
            finish_reason="stop",
            weights_version=0,
        )
        return ScoredRollout(rollout, cast(RolloutScores, None))


class FakeTrainers:
    """Scores every row that is asked for as FORWARD_KL and TOP1 say."""

    def score(self, items: Sequence[TrainItem], signals: Any) -> list[RolloutScores]:
        return [self.scores(item) for item in items]

    @staticmethod
    def scores(item: TrainItem) -> RolloutScores:
        key = item.rollout_id.split("/")[2]
        assert item.rows.tolist() == np.flatnonzero(MASKS[key]).tolist()
        kl = np.array(FORWARD_KL[key], np.float32)
        columns = {
            "entropy": np.ones_like(kl),
            "reverse_kl": 2 * kl,
            "forward_kl": kl,
            "jsd": kl,
            "logprob": np.full_like(kl, -1.25),
            "teacher_logprob": kl,
            "teacher_entropy": kl,
            "top1_agree": np.array(TOP1[key]),
        }
        return RolloutScores(item.rollout_id, columns)


def evaluator(scorer: FakeScorer, rollout: RolloutSettings) -> Evaluator:
    ids = np.array([1, 2], np.int32)
    prompts = [Prompt(key, ids, ids) for key in MASKS]
    # Asked for its divergence alone.
    task = HeldOutTask(EvalTask(greedy=False, samples=0), cast(Any, None), prompts, ["", ""])
    config = Config(rollout=rollout, eval=EvalSettings(kl_prompts=2), run=RunSettings(seed=3))
    parts: Any = (None, scorer, SimpleNamespace(take=None), FakeTrainers())
    return Evaluator(config, [task], *parts)


def test_divergence_is_a_mean_over_the_students_own_tokens() -> None:
    values = evaluator(FakeScorer(), RolloutSettings()).run()
    assert values["eval/kl"] == pytest.approx((0.1 + 0.2 + 0.3 + 1.0) / 4)
    assert values["eval/reverse_kl"] == pytest.approx(2 * values["eval/kl"])
    assert values["eval/top1"] == pytest.approx(2 / 4)
    assert values["eval/entropy"] == pytest.approx(1)
    assert values["eval/sync_gap"] == pytest.approx(0.25)


def test_divergence_is_taken_on_responses_sampled_as_the_runs_are_with_the_same_seeds() -> None:
    scorer = FakeScorer()
    rollout = RolloutSettings(temperature=0.7, top_p=0.9, top_k=40, max_new_tokens=17)
    subject = evaluator(scorer, rollout)
    subject.run()
    first = scorer.asked
    assert first[0] == Sampling(temperature=0.7, top_p=0.9, top_k=40, max_tokens=17)
    assert len(set(first[1])) == len(MASKS)
    subject.run()
    assert scorer.asked == first


def test_a_response_in_which_the_student_wrote_nothing_has_no_divergence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MASKS, "a", [0, 0, 0])
    values = evaluator(FakeScorer(), RolloutSettings()).run()
    assert values["eval/kl"] == pytest.approx(1.0)
    assert values["eval/sync_gap"] == pytest.approx(0.25)
    monkeypatch.setitem(MASKS, "b", [0, 0])
    assert evaluator(FakeScorer(), RolloutSettings()).run().keys() == {"seconds/eval"}
