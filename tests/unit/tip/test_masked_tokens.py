"""Tokens that the student did not write: nothing that a filter does or says depends on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from opd_ray.tip import TipFilter, TipSettings, TokenScores, rule_names

# Turns of the student (1) between tools (0); in one rollout it wrote nothing, in one all.
MASKS = ([1, 1, 1, 0, 0, 1, 1, 0, 1], [0, 0], [0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1], [])
MASK = np.concatenate(MASKS).astype(bool)
LENGTHS = np.array([len(mask) for mask in MASKS])
WRITTEN = np.array([sum(mask) for mask in MASKS])  # 6, 0, 4, 5, 0
POSITIONS = np.concatenate([np.flatnonzero(mask) for mask in MASKS])
SEEDS = np.arange(len(MASKS)) + 7
TOPS = {
    "entropy": math.log(16),
    "reverse_kl": 9.0,
    "forward_kl": 7.0,
    "jsd": math.log(2),
    "teacher_mass": 1.0,
    "union_forward_kl": 5.0,
}


def batches(seed: int, elsewhere: float) -> tuple[TokenScores, TokenScores]:
    """The trajectories with ``elsewhere`` at what tools wrote, and the student's tokens alone."""
    rng = np.random.default_rng(seed)
    own = {f"{name}_N": top * rng.random(WRITTEN.sum()) ** 2 for name, top in TOPS.items()}
    spread: dict[str, Any] = {}
    for name, values in own.items():
        spread[name] = np.full(len(MASK), elsewhere)
        spread[name][MASK] = values
    bare = TokenScores(WRITTEN, np.ones(WRITTEN.sum()), 16, position_N=POSITIONS, **own)
    return TokenScores(LENGTHS, MASK, 16, **spread), bare


@pytest.mark.parametrize("rule", rule_names())
@pytest.mark.parametrize(
    ("scope", "share_of"), [("batch", "rollout"), ("rollout", "batch"), ("stream", "rollout")]
)
def test_all_is_as_if_the_student_had_written_alone(rule: str, scope: str, share_of: str) -> None:
    settings = TipSettings(rule=rule, rho=0.5, normalise_over=scope, share_of=share_of)
    trajectories, alone = TipFilter(settings), TipFilter(settings)
    for step, elsewhere in enumerate((np.nan, 0.0)):
        mixed, bare = batches(step, elsewhere)
        found, expected = (
            trajectories.select(mixed, SEEDS, step),
            alone.select(bare, SEEDS, step),
        )
        assert not found.weights_N[~MASK].any()
        np.testing.assert_array_equal(found.weights_N[MASK], expected.weights_N)
        assert found.as_metrics() == expected.as_metrics()
    assert trajectories.state_dict() == alone.state_dict()


@pytest.mark.parametrize("rule", sorted(set(rule_names()) - {"all", "q3_only"}))
def test_a_share_is_of_the_students_tokens(rule: str) -> None:
    mixed, _ = batches(0, np.nan)
    ends = np.cumsum(LENGTHS)[:-1]
    selection = TipFilter(TipSettings(rule=rule, rho=0.5)).select(mixed, SEEDS, 0)
    assert [int(part.sum()) for part in np.split(selection.weights_N, ends)] == [3, 0, 2, 2, 0]
    assert selection.kept_fraction == pytest.approx(7 / 15)
    whole = TipFilter(TipSettings(rule=rule, rho=0.5, share_of="batch"))
    assert whole.select(mixed, SEEDS, 0).weights_N.sum() == 7


@pytest.mark.parametrize("rule", rule_names())
def test_a_batch_in_which_the_student_wrote_nothing_needs_no_scores(rule: str) -> None:
    """No teacher is asked about it, so that it has none of a teacher."""
    settings = TipSettings(rule=rule, normalise_over="stream")
    tip = TipFilter(settings)
    mixed, _ = batches(0, np.nan)
    tip.select(mixed, SEEDS, 0)
    before = tip.state_dict()
    empty = TokenScores(LENGTHS, np.zeros(len(MASK)), 16, entropy_N=np.zeros(len(MASK)))
    selection = tip.select(empty, SEEDS, 1)
    assert not selection.weights_N.any()
    assert selection.as_metrics() == {"rho": settings.rho, "kept_fraction": 0.0}
    assert tip.state_dict() == before
