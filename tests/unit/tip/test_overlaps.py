"""Overlaps with the other rules, where a share or a threshold says how many tokens are kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tip_batches import batch, kept

from opd_ray.tip import TipFilter, TipSettings, TokenScores, rule_names
from opd_ray.tip.quadrants import jaccard

# Six and four tokens of the student; before the last one of the second rollout a tool wrote one.
H = [0.90, 0.80, 0.60, 0.20, 0.50, 0.70, 0.85, 0.65, 0.30, 1.00, 0.20]
DIVERGENCE = [0.9, 0.8, 0.7, 0.6, 0.1, 0.2, 0.9, 0.1, 0.2, 9.0, 0.3]
MASK = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1]
SCORES = TokenScores(
    np.array([6, 5]),
    np.array(MASK),
    vocab_size=16,
    entropy_N=np.array(H) * math.log(16),
    reverse_kl_N=np.array(DIVERGENCE),
)
# Four tokens of the first rollout and one of the second lie above; the share, half, would be three
# and two.
SETTINGS = TipSettings(rule="divergence_topk", selection="threshold", threshold=0.5, rho=0.5)


def overlaps(settings: TipSettings) -> dict[str, float]:
    selection = TipFilter(settings).select(SCORES, np.zeros(2, np.int64), step=0)
    assert np.flatnonzero(selection.weights_N).tolist() == [0, 1, 2, 3, 6]
    return selection.overlaps


def test_under_a_threshold_others_keep_as_many_tokens_of_each_rollout() -> None:
    found = overlaps(SETTINGS)
    # entropy_topk keeps 0, 1, 5, 2 and 6: four of the five, six in the union.
    assert found["entropy_topk"] == pytest.approx(4 / 6)
    assert found["all"] == pytest.approx(5 / 10)


def test_under_a_threshold_others_keep_as_many_tokens_of_the_batch() -> None:
    found = overlaps(replace(SETTINGS, share_of="batch"))
    # entropy_topk keeps 0, 6, 1, 5 and 7: three of the five, seven in the union.
    assert found["entropy_topk"] == pytest.approx(3 / 7)
    # What is kept depends on the threshold alone, not on a share that is not asked for.
    assert overlaps(replace(SETTINGS, share_of="batch", rho=0.1)) == found


def test_overlaps_compare_equal_numbers_of_tokens():
    selection = kept(TipSettings(rule="entropy_topk", rho=0.3))
    assert set(selection.overlaps) == set(rule_names()) - {"entropy_topk"}
    for rule, overlap in selection.overlaps.items():
        other = kept(TipSettings(rule=rule, rho=0.3)).weights_N
        assert overlap == pytest.approx(jaccard(selection.weights_N > 0, other > 0))
    assert kept(TipSettings(overlap=False)).overlaps == {}


def test_overlaps_leave_out_rules_without_scores():
    scores = batch(union_forward_kl_N=None, jsd_N=None)
    overlaps = kept(TipSettings(rho=0.3), scores).overlaps
    assert "teachability" not in overlaps
    assert "product" not in overlaps
    assert "q3_only" in overlaps


def test_jaccard():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert jaccard(a, b) == pytest.approx(1 / 3)
    assert jaccard(a, a) == 1.0
    assert jaccard(~a & a, ~a & a) == 1.0
