"""The figures of rollouts that act, each by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from fake_replicas import make_pool
from masked_rollouts import masked_rollout

from opd_ray.coordinator.metrics import StepSnapshot, step_metrics
from opd_ray.coordinator.turn_metrics import (
    bucket_name,
    rollout_metrics,
    turn_buckets,
    turn_metrics,
)
from opd_ray.environments.call_account import CallAccount
from opd_ray.pools.scorer import ScoredRollout
from opd_ray.step_account import StepAccount
from opd_ray.tip import Selection, TokenScores
from opd_ray.types import Rollout, RolloutFigure, RolloutScores


def rollout(
    mask: list[int], turns: list[int] | None, ending: str = "stop", **figures: float
) -> Rollout:
    return masked_rollout(
        mask,
        finish_reason=ending,
        turns=None if turns is None else np.array(turns, np.int16),
        figures=figures,
    )


CALLS = {
    "calls": 4.0,
    "parse_error": 1.0,
    "unknown": 2.0,
    "failed": 0.0,
    "timeout": 3.0,
    "cut": 1.0,
    "tool_seconds": 0.5,
}
NO_CALLS = dict.fromkeys(CALLS, 0.0)
TWO_TURNS = rollout([1, 1, 0, 0, 1], [0, 0, 0, 0, 1], **CALLS)
ONE_TURN = rollout([1, 1, 1], [0, 0, 0], "turns", **NO_CALLS)
ALONE = rollout([1, 1], None, "length", prompt_tokens=50.0, cached_tokens=40.0)


def test_what_became_of_rollouts_is_said_of_those_with_an_environment() -> None:
    assert rollout_metrics([TWO_TURNS, ALONE, ONE_TURN]) == {
        "rollout/cached_share": 0.8,
        "rollout/turns_mean": 1.5,
        "rollout/turns_max": 2,
        "rollout/response_mean": 4.0,
        "rollout/response_max": 5,
        "rollout/others_share": 0.25,  # two of eight
        "rollout/ended/stop": 0.5,
        "rollout/ended/length": 0.0,
        "rollout/ended/context": 0.0,
        "rollout/ended/turns": 0.5,
        "rollout/ended/tool_limit": 0.0,
        "tools/calls_per_rollout": 2.0,
        "tools/parse_error_per_rollout": 0.5,
        "tools/unknown_per_rollout": 1.0,
        "tools/failed_per_rollout": 0.0,
        "tools/timeout_per_rollout": 1.5,
        "tools/cut_per_rollout": 0.5,
        "tools/seconds_per_rollout": 0.25,
    }
    assert rollout_metrics([ALONE]) == {"rollout/cached_share": 0.8}
    assert rollout_metrics([rollout([1], None)]) == {}


def test_what_environments_say_is_the_mean_over_those_that_say_it() -> None:
    said = [
        replace(TWO_TURNS, figures={"environment/success": 1.0, "environment/steps": 3.0}),
        replace(ONE_TURN, figures={"environment/success": 0.5}),
        replace(ONE_TURN, figures={}),
    ]
    found = rollout_metrics(said)
    named = {name: value for name, value in found.items() if name.startswith("environment/")}
    assert named == {"environment/success": 0.75, "environment/steps": 3.0}
    assert not any(name.startswith("tools/") for name in found)


def test_of_a_rollout_that_is_left_out_the_turns_count_and_its_tokens_do_not() -> None:
    left_out = replace(TWO_TURNS, response_mask=np.zeros(5, np.uint8))
    found = rollout_metrics([left_out, ONE_TURN])
    assert found["rollout/turns_mean"] == 1.5
    assert found["rollout/others_share"] == 0.0
    found = rollout_metrics([left_out, rollout([], [])])
    assert (found["rollout/turns_mean"], found["rollout/others_share"]) == (1.0, 0.0)


def test_the_figures_of_a_rollout_have_one_list_of_names() -> None:
    calls = {field.name for field in fields(CallAccount)}
    assert calls | {"prompt_tokens", "cached_tokens"} == set(RolloutFigure)


def test_turn_numbers_fall_into_few_buckets() -> None:
    turns = np.array([0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 32767], np.int16)
    names = [bucket_name(bucket) for bucket in turn_buckets(turns).tolist()]
    assert names == [
        *["0", "1", "2", "3"],
        *["4-7", "4-7", "8-15", "8-15", "16-31", "16-31", "32-63", "16384-32767"],
    ]


ROLLOUTS = [
    # Turns 0, 1 and, far on, 5 and 6; a tool's tokens after turn 0.
    rollout([1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 1, 5, 5, 6]),
    rollout([1, 1], None),
    rollout([1, 0], [0, 0]),
]
SCORES = TokenScores(
    np.array([7, 2, 2]),
    np.concatenate([one.response_mask for one in ROLLOUTS]),
    vocab_size=100,
    entropy_N=[0.5, 1.0, np.nan, 3.0, 1.0, 2.0, 3.0, 4.0, 4.0, 3.0, np.nan],
    reverse_kl_N=[1, 2, 9, 4, 0, 0, 3, 9, 9, 3, 9],
    turns_N=[0, 0, 0, 1, 5, 5, 6, 0, 0, 0, 0],
)
SELECTION = Selection(
    np.array([1, 0, 0, 0, 0.5, 0, 0.5, 1, 1, 1, 0], np.float32), rho=0.5, kept_fraction=0.5
)


def test_figures_by_turn_are_of_the_students_tokens_in_rollouts_that_act() -> None:
    found = turn_metrics(ROLLOUTS, SCORES, SELECTION)
    expected = {
        "turn/0/tokens": 3.0,
        "turn/0/kept_share": 2 / 3,
        "turn/0/entropy_mean": 1.5,
        "turn/0/reverse_kl_mean": 2.0,
        "turn/1/tokens": 1.0,
        "turn/1/kept_share": 0.0,
        "turn/1/entropy_mean": 3.0,
        "turn/1/reverse_kl_mean": 4.0,
        "turn/4-7/tokens": 3.0,
        "turn/4-7/kept_share": 2 / 3,
        "turn/4-7/entropy_mean": 2.0,
        "turn/4-7/reverse_kl_mean": 1.0,
    }
    assert found == pytest.approx(expected)
    assert turn_metrics(ROLLOUTS, replace(SCORES, turns_N=None), SELECTION) == {}


def test_a_batch_without_a_token_of_the_students_has_no_turns() -> None:
    nothing = replace(ROLLOUTS[2], response_mask=np.zeros(2, np.uint8))
    scores = TokenScores(np.array([2]), np.zeros(2, bool), 100, turns_N=[0, 0])
    selection = Selection(np.zeros(2, np.float32), rho=0.5, kept_fraction=0.0)
    assert turn_metrics([nothing], scores, selection) == {}


def test_a_step_has_them_and_counts_every_limit_as_truncated() -> None:
    endings = ["turns", "length", "stop"]
    scored = [
        ScoredRollout(replace(one, finish_reason=ending), RolloutScores("r", {}))
        for one, ending in zip(ROLLOUTS, endings, strict=True)
    ]
    account = StepAccount(1.0, 1.0, 6, 9, 0, 1.0, 0.1, 0.0, 0.0, False, 1.0)
    values = step_metrics(
        StepSnapshot(scored, SCORES, SELECTION),
        account,
        {},
        {"seconds/step": 2.0, "seconds/idle": 0.0},
        {"teacher": make_pool(1)[0].stats()},
        alone_seconds=0.0,
    )
    assert values["turn/4-7/tokens"] == 3.0
    assert values["rollout/turns_mean"] == 4.0
    assert values["rollout/tokens"] == 9  # of eleven
    assert values["rollout/length_max"] == 6
    assert values["rollout/response_max"] == 7
    assert values["rollout/truncated"] == pytest.approx(2 / 3)
    assert values["tokens_per_second/step"] == 4.5
