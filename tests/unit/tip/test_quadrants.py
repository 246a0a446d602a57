"""Quadrants of tokens: shares, means and cuts, by hand and from the whole filter."""

import math

import numpy as np
import pytest
from tip_batches import SEEDS, batch, kept, one_rollout

from opd_ray.tip import TipFilter, TipSettings, quadrants
from opd_ray.tip.quadrants import quadrant_report


@pytest.mark.parametrize("stretch", [2, 100])
def test_quadrants_by_hand(stretch, monkeypatch):
    monkeypatch.setattr(quadrants, "_STRETCH", stretch)
    h_hat = np.array([0.9, 0.9, 0.1, 0.1, 0.1], dtype=np.float32)
    d_hat = np.array([0.8, 0.2, 0.8, 0.2, 0.5], dtype=np.float32)
    report = quadrant_report(
        h_hat,
        d_hat,
        h_M=h_hat / 2,
        divergence_M=d_hat * 10,
        loss_M=d_hat * 100,
        kept_M=np.array([True, False, True, False, True]),
        cut_kind="value",
        h_cut=0.5,
        divergence_cut=0.5,
    )
    q = report.quadrants
    assert [q[name].share for name in ("Q1", "Q2", "Q3", "Q4")] == [0.2, 0.2, 0.2, 0.4]
    assert [q[name].kept_share for name in ("Q1", "Q2", "Q3", "Q4")] == [1.0, 0.0, 1.0, 0.5]
    assert q["Q3"].mean_h == pytest.approx(0.05)
    assert q["Q4"].mean_divergence == pytest.approx(3.5)
    assert q["Q4"].mean_loss == pytest.approx(35.0)
    assert (report.h_cut, report.divergence_cut) == (0.5, 0.5)
    assert report.index_M.tolist() == [0, 1, 2, 3, 3]
    assert report.index_M.dtype == np.uint8


def test_quadrants_cut_at_the_median_of_the_batch():
    scores = batch()
    selection = kept(TipSettings(h_clip=1.0))
    h = scores.entropy_N[scores.response_mask_N]
    d = scores.reverse_kl_N[scores.response_mask_N]
    chosen = selection.weights_N[scores.response_mask_N] > 0
    high_h, high_d = h > np.median(h), d > np.median(d)
    found = selection.quadrants.quadrants
    for name, inside in (
        ("Q1", high_h & high_d),
        ("Q2", high_h & ~high_d),
        ("Q3", ~high_h & high_d),
        ("Q4", ~high_h & ~high_d),
    ):
        assert found[name].share == pytest.approx(inside.mean())
        assert found[name].kept_share == pytest.approx(chosen[inside].mean())
        assert found[name].mean_h == pytest.approx(h[inside].mean() / math.log(16), rel=1e-5)
        assert found[name].mean_loss == pytest.approx(d[inside].mean(), rel=1e-5)
    assert selection.quadrants.h_cut == pytest.approx(
        (np.median(h) - h.min()) / np.ptp(h), rel=1e-4
    )


def test_empty_quadrants_have_no_means():
    report = kept(TipSettings(), batch(entropy_N=np.ones(100), reverse_kl_N=np.ones(100))).quadrants
    assert report.quadrants["Q4"].share == 1.0
    assert report.quadrants["Q1"].mean_h is None
    assert "Q1/mean_h" not in report.as_metrics()


def test_loss_of_the_quadrants_is_the_runs_loss():
    scores = batch()
    selection = TipFilter(TipSettings(), loss_score="forward_kl").select(scores, SEEDS, 0)
    total = sum(q.share * q.mean_loss for q in selection.quadrants.quadrants.values())
    assert total == pytest.approx(scores.forward_kl_N[scores.response_mask_N].mean(), rel=1e-5)


def test_quadrants_are_cut_where_asked():
    settings = TipSettings(
        h_clip=1.0, quadrant_cut="value", quadrant_h_cut=0.4, quadrant_divergence_cut=0.6
    )
    scores = one_rollout([0, 0.5, 1], [0, 5, 10])
    quadrants = TipFilter(settings).select(scores, np.zeros(1, np.int64), 0).quadrants
    assert (quadrants.h_cut, quadrants.divergence_cut) == (0.4, 0.6)
    assert quadrants.index_M.tolist() == [3, 1, 0]


def test_a_loss_that_is_no_score_leaves_the_quadrants_without_a_mean_loss():
    """Neither one that this batch lacks nor one that no batch has stops the filter."""
    scores = batch(jsd_N=None)
    for loss in ("jsd", "skew_kl"):
        report = TipFilter(TipSettings(), loss_score=loss).select(scores, SEEDS, 0).quadrants
        assert [quadrant.mean_loss for quadrant in report.quadrants.values()] == [None] * 4
        assert not any(name.endswith("mean_loss") for name in report.as_metrics())
    report = TipFilter(TipSettings(), loss_score="forward_kl").select(scores, SEEDS, 0).quadrants
    assert all(quadrant.mean_loss is not None for quadrant in report.quadrants.values())
