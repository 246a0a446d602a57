"""Every score of the table finds its way from who works it out to the rules, under its own name."""

from __future__ import annotations

from dataclasses import fields
from math import log
from typing import Any

import numpy as np
import pytest
import torch

from actors.teacher.protocol import TeacherError
from actors.teacher.service import TeacherServer
from actors.trainer.batch import MicroBatch
from actors.trainer.objective import Objective, no_scores, split_scores
from opd_ray.config.schema import LossSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.divergence import ExactScores, HiddenTarget
from opd_ray.tip import MissingScoreError, TokenScores, batch_scores, with_exact_scores
from opd_ray.tip.scores import SCORES
from opd_ray.types import (
    Rollout,
    RolloutScores,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)

V, M = 4, 2
HALF, QUARTER, EIGHTH = log(0.5), log(0.25), log(0.125)
STUDENT = TopK(
    np.array([[0, 1], [0, 1]], np.int32), np.full((M, 2), [HALF, QUARTER], dtype=np.float32)
)
OWN = TopK(np.array([[1, 0], [1, 0]], np.int32), STUDENT.logprobs)
RESPONSE = np.array([2, 0], np.int32)


class KnowsAll:
    """A teacher with the probabilities 1/4, 1/2, 1/8, 1/8, and everything that it may tell."""

    def info(self) -> TeacherInfo:
        return TeacherInfo("all", V, context_length=9, signals=("topk",))

    def score(self, requests: list[ScoreRequest]) -> list[TeacherAnswer]:
        return [
            TeacherAnswer(
                rollout_id=request.rollout_id,
                logprob=np.array([EIGHTH, QUARTER], np.float32),
                at_student_topk=np.full((M, 2), [QUARTER, HALF], dtype=np.float32),
                signal=TopKSignal(OWN.ids, OWN.logprobs),
                entropy=np.full(M, 1.75 * log(2), np.float32),
                topk=OWN,
                retries=3,
            )
            for request in requests
        ]

    def close(self) -> None:
        """Nothing to let go."""


ROLLOUT = Rollout(
    rollout_id="r",
    prompt_id="p",
    sample=0,
    prompt_ids=np.array([3], np.int32),
    response_ids=RESPONSE,
    response_mask=np.ones(M, np.uint8),
    entropy=np.array([1.25, 1.0], np.float32),
    logprob=np.array([-2.0, -0.5], np.float32),
    finish_reason="stop",
    weights_version=0,
)


def judged() -> RolloutScores:
    server = TeacherServer(KnowsAll(), TeacherSettings(path="none", topk=2))
    [scores] = server.score([ScoreRequest("r", ROLLOUT.prompt_ids, RESPONSE, STUDENT)])
    return scores


def test_every_score_of_the_table_arrives_under_its_name() -> None:
    scores = judged()
    assert (scores.rollout_id, scores.retries) == ("r", 3)
    batch = batch_scores([ROLLOUT], [scores], V)
    # Buckets: student (1/2, 1/4, 1/4), teacher (1/4, 1/2, 1/4). Their middle: (3/8, 3/8, 1/4).
    jsd = 0.5 * log(0.5 / 0.375) + 0.25 * log(0.25 / 0.375)
    expected = {
        "entropy": [1.25, 1.0],
        "reverse_kl": [0.25 * log(2)] * M,
        "forward_kl": [0.25 * log(2)] * M,
        "jsd": [jsd] * M,
        "teacher_logprob": [EIGHTH, QUARTER],
        "teacher_entropy": [1.75 * log(2)] * M,  # that of the teacher, above 1.5 of the buckets
        "teacher_mass": [0.75] * M,
        "union_forward_kl": [log(2) / 3] * M,  # (2/3, 1/3) against (1/3, 2/3)
        "rollout_logprob": [-2.0, -0.5],
        "position": [0, 1],
    }
    assert expected.keys() == SCORES.keys()
    for name, values in expected.items():
        found = batch.get(name, wanted_by="this test")
        np.testing.assert_allclose(found, values, rtol=1e-5, err_msg=name)


def test_scores_that_nobody_wants_are_left_out() -> None:
    batch = batch_scores([ROLLOUT], [judged()], V, {"entropy", "jsd", "forward_kl"})
    assert {name for name in SCORES if batch.has(name)} == {
        *("entropy", "jsd", "forward_kl", "position")
    }
    exact = RolloutScores(
        "r", {name: np.full(M, 0.5, np.float32) for name in ("jsd", "reverse_kl")}
    )
    batch = with_exact_scores(batch, [exact], {"jsd"})
    assert not batch.has("reverse_kl")


def test_a_students_top_k_that_is_none_is_refused_before_the_teacher_is_asked() -> None:
    class IsNotAsked(KnowsAll):
        def score(self, requests: list[ScoreRequest]) -> list[TeacherAnswer]:
            raise AssertionError

    server = TeacherServer(IsNotAsked(), TeacherSettings(path="none", topk=2))
    broken = TopK(STUDENT.ids, np.full((M, 2), np.nan, np.float32))
    with pytest.raises(
        TeacherError, match=r"rollout 'r', position 0: student_topk.logprobs is nan"
    ):
        server.score([ScoreRequest("r", ROLLOUT.prompt_ids, RESPONSE, broken)])


def test_what_a_teacher_does_not_tell_is_not_there() -> None:
    class TellsLittle(KnowsAll):
        def score(self, requests: list[ScoreRequest]) -> list[TeacherAnswer]:
            [answer] = super().score(requests)
            return [
                TeacherAnswer(
                    answer.rollout_id, answer.logprob, answer.at_student_topk, answer.signal
                )
            ]

    server = TeacherServer(TellsLittle(), TeacherSettings(path="none", topk=2))
    [scores] = server.score([ScoreRequest("r", ROLLOUT.prompt_ids, RESPONSE, STUDENT)])
    batch = batch_scores([ROLLOUT], [scores], V)
    missing = {name for name in SCORES if not batch.has(name)}
    assert missing == {"teacher_entropy", "union_forward_kl"}


def test_the_trainers_columns_are_those_of_the_exact_pass_by_name_and_rollout() -> None:
    """Heads that are unit matrices: hidden states are logits."""
    student = torch.tensor([[HALF, QUARTER, EIGHTH, EIGHTH]] * 3)
    teacher = torch.tensor([[QUARTER, HALF, EIGHTH, EIGHTH]] * 3)
    nothing = torch.zeros(0)
    batch = MicroBatch(
        rollout_ids=("a", "b"),
        rows_per_rollout=(1, 2),
        ids_1T=nothing,
        positions_1T=nothing,
        segments=(),
        padding_tokens=0,
        kept_N=nothing,
        sampled_ids_N=torch.tensor([0, 1, 2]),
        weights_N=torch.ones(3),
        rollout_logprob_N=nothing,
        targets=(HiddenTarget(teacher, torch.eye(V)),),
    )
    made: tuple[Any, ...] = Objective(LossSettings(), V).scores(batch, student, torch.eye(V), None)
    found = {one.rollout_id: one.columns for one in split_scores(batch, made)}
    kl = 0.5 * log(2) - 0.25 * log(2)
    jsd = 0.5 * log(0.5 / 0.375) + 0.25 * log(0.25 / 0.375)
    same = {
        "entropy": 1.75 * log(2),
        "reverse_kl": kl,
        "forward_kl": kl,
        "jsd": jsd,
        "teacher_entropy": 1.75 * log(2),
        "top1_agree": 0.0,
    }
    own = {
        "a": {"logprob": [HALF], "teacher_logprob": [QUARTER]},
        "b": {"logprob": [QUARTER, EIGHTH], "teacher_logprob": [HALF, EIGHTH]},
    }
    for rollout, rows in (("a", 1), ("b", 2)):
        expected = {name: [value] * rows for name, value in same.items()} | own[rollout]
        assert found[rollout].keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[rollout][name], values, rtol=1e-5, err_msg=name)
        assert found[rollout]["top1_agree"].dtype == np.bool_
    empty = no_scores("c").columns
    assert {name: (len(values), values.dtype) for name, values in empty.items()} == {
        name: (0, found["a"][name].dtype) for name in found["a"]
    }


def test_all_that_the_exact_pass_says_of_a_score_takes_its_place() -> None:
    named = {field.name.removesuffix("_N") for field in fields(ExactScores)}
    columns = {name: np.full(M, 0.125, np.float32) for name in named}
    columns |= {name: -columns[name] for name in ("logprob", "teacher_logprob")}
    streamed = batch_scores([ROLLOUT], [judged()], V)
    batch = with_exact_scores(streamed, [RolloutScores("r", columns)])
    changed = {
        name
        for name in SCORES
        if not np.array_equal(getattr(batch, f"{name}_N"), getattr(streamed, f"{name}_N"))
    }
    assert changed == {
        "entropy",
        "reverse_kl",
        "forward_kl",
        "jsd",
        "teacher_logprob",
        "teacher_entropy",
    }


def test_a_column_of_another_length_is_named_whichever_it_is() -> None:
    streamed = batch_scores([ROLLOUT], [judged()], V)
    columns = {"entropy": np.zeros(M, np.float32), "jsd": np.zeros(M + 1, np.float32)}
    with pytest.raises(ValueError, match="exact scores of rollout r have 3 rows"):
        with_exact_scores(streamed, [RolloutScores("r", columns)])


def test_a_score_that_does_not_exist_is_missing_and_the_error_lists_those_that_do() -> None:
    batch = TokenScores(np.array([M]), np.ones(M, bool), V)
    assert not batch.has("skew_kl")
    with pytest.raises(MissingScoreError, match="'skew_kl'.*scores are: entropy, reverse_kl"):
        batch.get("skew_kl", wanted_by="rule=mine")


def test_a_value_out_of_range_is_named_with_its_unit() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\] \(probability\); its source: a teacher"):
        TokenScores(np.array([M]), np.ones(M, bool), V, teacher_mass_N=np.array([0.5, 1.5]))
