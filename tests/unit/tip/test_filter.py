"""The filter around the rules: counts, schedules, ways to select, quadrants, overlaps, settings."""

import json
import math
from dataclasses import asdict, dataclass, field

import numpy as np
import pytest
from omegaconf import OmegaConf

from opd_ray.errors import ConfigError
from opd_ray.tip import (
    MissingScoreError,
    TipFilter,
    TipSettings,
    TokenScores,
    find_rule,
    rule_names,
)
from opd_ray.tip.quadrants import jaccard, quadrant_report
from opd_ray.tip.scores import SCORES
from opd_ray.tip.select import SelectBy, ShareOf, keep_greatest, share_counts
from opd_ray.types import Divergence

LENGTHS = np.array([40, 0, 3, 57])
SEEDS = np.arange(4) + 100


def batch(seed=0, **changes):
    rng = np.random.default_rng(seed)
    total = int(LENGTHS.sum())
    fields = {
        "entropy_N": rng.gamma(0.5, 0.5, total).clip(0, 2),
        "reverse_kl_N": rng.gamma(0.5, 1.0, total),
        "forward_kl_N": rng.gamma(0.5, 1.0, total),
        "jsd_N": rng.random(total) / 2,
        "teacher_mass_N": rng.random(total),
        "union_forward_kl_N": rng.gamma(0.5, 1.0, total),
    }
    return TokenScores(LENGTHS, rng.random(total) < 0.9, 16, **(fields | changes))


def kept(settings, scores=None, step=0):
    return TipFilter(settings).select(batch() if scores is None else scores, SEEDS, step)


def test_share_is_the_floor_of_the_decimal_product():
    lengths = np.arange(0, 2001)
    for percent in range(101):
        expected = percent * lengths // 100
        np.testing.assert_array_equal(share_counts(lengths, percent / 100), expected)
    assert share_counts(np.array([10**7]), 0.29).tolist() == [2_900_000]
    assert share_counts(np.array([1]), 0.999999).tolist() == [0]


def test_ties_go_to_the_earlier_position():
    scores = np.array([1, 2, 2, 2, 0, -0.0, 0.0, 0.0])
    keep = keep_greatest(scores, np.array([5, 3]), np.array([2, 2]))
    assert keep.tolist() == [False, True, True, False, False, True, True, False]


@pytest.mark.parametrize(
    ("kind", "step", "expected"),
    [
        ("constant", 7, 0.8),
        ("linear", 0, 0.8),
        ("linear", 5, 0.5),
        ("linear", 10, 0.2),
        ("linear", 99, 0.2),
        ("cosine", 0, 0.8),
        ("cosine", 5, 0.5),
        ("cosine", 2.5, 0.2 + 0.6 * (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 10, 0.2),
    ],
)
def test_rho_schedule(kind, step, expected):
    settings = TipSettings(rho=0.8, rho_schedule=kind, rho_end=0.2, rho_schedule_steps=10)
    assert settings.rho_at(step) == pytest.approx(expected)


def test_rho_moves_with_the_step():
    settings = TipSettings(rho=1.0, rho_schedule="linear", rho_end=0.0, rho_schedule_steps=4)
    assert [kept(settings, step=s).rho for s in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert kept(settings, step=0).kept_fraction == 1.0
    assert kept(settings, step=4).kept_fraction == 0.0


def test_share_of_the_batch():
    scores = batch()
    weights_N = kept(TipSettings(rule="divergence_topk", rho=0.2, share_of="batch")).weights_N
    written = np.flatnonzero(scores.response_mask_N)
    best = sorted(written, key=lambda i: -scores.reverse_kl_N[i])[: len(written) // 5]
    assert np.flatnonzero(weights_N).tolist() == sorted(best)


@pytest.mark.parametrize("rule", ["random", "entropy_sample", "bottom_soft_or"])
def test_share_of_the_batch_has_the_right_size(rule):
    selection = kept(TipSettings(rule=rule, rho=0.2, share_of="batch"))
    written = int(batch().response_mask_N.sum())
    assert np.count_nonzero(selection.weights_N) == written // 5


def test_threshold():
    scores = batch()
    settings = TipSettings(rule="divergence_topk", selection="threshold", threshold=0.5)
    expected = (scores.reverse_kl_N >= 0.5) & scores.response_mask_N
    np.testing.assert_array_equal(kept(settings).weights_N > 0, expected)
    settings = TipSettings(rule="bottom_soft_or", selection="threshold", threshold=0.1)
    soft = kept(TipSettings(rule="soft_or", selection="soft")).weights_N
    expected = (soft <= np.float32(0.1)) & scores.response_mask_N
    np.testing.assert_array_equal(kept(settings).weights_N > 0, expected)


def test_soft_weights_are_the_scores_of_student_tokens():
    scores = batch()
    selection = kept(TipSettings(rule="divergence_topk", selection="soft"))
    np.testing.assert_array_equal(
        selection.weights_N, np.where(scores.response_mask_N, scores.reverse_kl_N, 0)
    )
    assert selection.weights_N.dtype == np.float32


@pytest.mark.parametrize("scope", ["batch", "rollout", "stream"])
def test_normalising_has_its_scope(scope):
    """soft_or on two rollouts of very different divergence."""
    scores = TokenScores(
        np.array([3, 3]), np.ones(6), 16, entropy_N=np.zeros(6), reverse_kl_N=[0, 1, 2, 0, 10, 20]
    )
    filter_ = TipFilter(TipSettings(selection="soft", normalise_over=scope))
    expected = [0, 0.5, 1, 0, 0.5, 1] if scope == "rollout" else [0, 0.05, 0.1, 0, 0.5, 1]
    weights_N = filter_.select(scores, np.zeros(2, int), 0).weights_N
    np.testing.assert_allclose(weights_N, expected, rtol=1e-6)
    later = TokenScores(np.array([1]), [1], 16, entropy_N=[0], reverse_kl_N=[5])
    weights_N = filter_.select(later, np.zeros(1, int), 1).weights_N
    # Alone in its batch it is constant; only the stream remembers what 5 nats are worth.
    assert weights_N == pytest.approx([0.25 if scope == "stream" else 0.0], rel=0.01)


def test_stream_rollout_by_rollout_equals_the_batch_at_once():
    settings = TipSettings(rho=0.3, normalise_over="stream")
    at_once, one_by_one = TipFilter(settings), TipFilter(settings)
    for step in range(3):
        scores = batch(step)
        together = at_once.select(scores, SEEDS, step).weights_N
        parts = []
        for r, (end, length) in enumerate(zip(np.cumsum(LENGTHS), LENGTHS, strict=True)):
            rows = slice(end - length, end)
            part = TokenScores(
                LENGTHS[r : r + 1],
                scores.response_mask_N[rows],
                16,
                entropy_N=scores.entropy_N[rows],
                reverse_kl_N=scores.reverse_kl_N[rows],
            )
            parts.append(one_by_one.select(part, SEEDS[r : r + 1], step).weights_N)
        if step > 0:  # at step 0 there is nothing to go by but what is at hand
            np.testing.assert_array_equal(np.concatenate(parts), together)


def test_stream_state_survives_a_checkpoint():
    settings = TipSettings(rho=0.3, normalise_over="stream")
    straight = TipFilter(settings)
    for step in range(2):
        straight.select(batch(step), SEEDS, step)
    resumed = TipFilter(settings)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for step in range(2, 4):
        np.testing.assert_array_equal(
            straight.select(batch(step), SEEDS, step).weights_N,
            resumed.select(batch(step), SEEDS, step).weights_N,
        )


def test_quadrants_by_hand():
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


def test_quadrants_cut_at_the_median_of_the_batch():
    scores = batch()
    selection = kept(TipSettings(h_clip=1.0))
    h = scores.entropy_N[scores.response_mask_N]
    d = scores.reverse_kl_N[scores.response_mask_N]
    chosen = selection.weights_N[scores.response_mask_N] > 0
    high_h, high_d = h > np.median(h), d > np.median(d)
    quadrants = selection.quadrants.quadrants
    for name, inside in (
        ("Q1", high_h & high_d),
        ("Q2", high_h & ~high_d),
        ("Q3", ~high_h & high_d),
        ("Q4", ~high_h & ~high_d),
    ):
        assert quadrants[name].share == pytest.approx(inside.mean())
        assert quadrants[name].kept_share == pytest.approx(chosen[inside].mean())
        assert quadrants[name].mean_h == pytest.approx(h[inside].mean() / math.log(16), rel=1e-5)
        assert quadrants[name].mean_loss == pytest.approx(d[inside].mean(), rel=1e-5)
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


def test_a_batch_without_student_tokens_keeps_nothing():
    scores = TokenScores(LENGTHS, np.zeros(100), 16)
    selection = kept(TipSettings(rule="all"), scores)
    assert not selection.weights_N.any()
    assert (selection.kept_fraction, selection.quadrants, selection.overlaps) == (0.0, None, {})


def test_metrics_are_flat_numbers():
    metrics = kept(TipSettings()).as_metrics()
    assert {"rho", "kept_fraction", "h_cut", "Q3/share", "Q1/mean_loss", "overlap/random"} <= set(
        metrics
    )
    assert json.loads(json.dumps(metrics)) == metrics


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        ("soft_or", "entropy"),
        ("soft_or", "reverse_kl"),
        ("q3_only", "forward_kl"),
        ("product", "jsd"),
        ("teachability", "union_forward_kl"),
    ],
)
def test_a_missing_score_is_refused(rule, missing):
    with pytest.raises(MissingScoreError, match=f"tip.rule={rule} needs the score '{missing}'"):
        kept(TipSettings(rule=rule), batch(**{f"{missing}_N": None}))


def test_the_divergence_of_a_rule_is_the_chosen_one():
    with pytest.raises(MissingScoreError, match="tip.rule=soft_or needs the score 'jsd'"):
        kept(TipSettings(divergence="jsd"), batch(jsd_N=None))
    kept(TipSettings(divergence="jsd"), batch(reverse_kl_N=None))


def test_seeds_must_match_the_rollouts():
    with pytest.raises(ValueError, match=r"shape \(2,\) for 4 rollouts"):
        TipFilter(TipSettings()).select(batch(), np.zeros(2, int), 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rho": 1.2}, r"tip.rho=1.2 must lie in \[0, 1\]"),
        ({"rho": float("nan")}, "tip.rho=nan"),
        ({"rho_schedule": "linear"}, "needs tip.rho_end"),
        ({"rho_schedule": "cosine", "rho_end": 0.1}, "tip.rho_schedule_steps=0"),
        ({"selection": "threshold"}, "give a threshold"),
        ({"threshold": 0.5}, "give a threshold"),
        ({"divergence": "kl"}, "tip.divergence='kl' must be one of reverse_kl, forward_kl, jsd"),
        ({"selection": "tresh"}, "tip.selection='tresh' must be .*; did you mean 'threshold'"),
        ({"quadrant_cut": 3}, "tip.quadrant_cut=3 must be one of quantile, value$"),
        ({"normalise_over": "token"}, "tip.normalise_over='token'"),
        ({"h_clip": 98}, "tip.h_clip=98"),
        ({"alpha": -1.0}, "tip.alpha=-1.0"),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TipSettings(**fields)


def test_a_loss_without_a_score_is_no_divergence_of_the_filter(monkeypatch):
    monkeypatch.delitem(SCORES, "jsd")
    with pytest.raises(ValueError, match=r"tip.divergence=jsd .* one of reverse_kl, forward_kl$"):
        TipSettings(divergence="jsd")


def test_choices_are_members_in_memory_and_plain_text_on_disk():
    settings = TipSettings(selection="soft", share_of="batch", divergence="jsd")
    assert settings.selection is SelectBy.soft
    assert settings.share_of is ShareOf.batch
    assert settings.divergence is Divergence.jsd
    text = json.dumps(asdict(settings))
    assert '"selection": "soft", "share_of": "batch"' in text
    assert json.loads(text) == asdict(settings)
    assert "selection: soft\nshare_of: batch\n" in OmegaConf.to_yaml(OmegaConf.structured(settings))
    # The state of a stream names the score, not the member.
    tip_filter = TipFilter(TipSettings(normalise_over="stream", divergence="jsd", overlap=False))
    tip_filter.select(batch(), SEEDS, 0)
    assert {type(name) for name in tip_filter.state_dict()["current"]} == {str}


def test_rules_that_do_not_go_with_a_selection():
    with pytest.raises(ValueError, match="random samples, so no threshold applies"):
        TipFilter(TipSettings(rule="random", selection="threshold", threshold=0.5))
    with pytest.raises(ValueError, match="bottom_soft_or keeps the least scores"):
        TipFilter(TipSettings(rule="bottom_soft_or", selection="soft"))


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="choose one of all, bottom_soft_or"):
        find_rule("nothing")
    with pytest.raises(ValueError, match="'soft_ro'; did you mean 'soft_or'"):
        TipFilter(TipSettings(rule="soft_ro"))
    with pytest.raises(ValueError, match="'math:pi' is no rule"):
        find_rule("math:pi")
    with pytest.raises(ConfigError, match="tip.rule = 'no_such_module:rule' cannot be imported"):
        find_rule("no_such_module:rule")


def test_settings_are_a_section_of_a_structured_config():
    @dataclass
    class Config:
        tip: TipSettings = field(default_factory=TipSettings)

    changed = OmegaConf.merge(OmegaConf.structured(Config), {"tip": {"rule": "random", "rho": 0.1}})
    settings = OmegaConf.to_object(changed).tip
    assert asdict(settings) == asdict(TipSettings(rule="random", rho=0.1))


def one_rollout(h, divergence):
    return TokenScores(
        np.array([len(divergence)]),
        np.ones(len(divergence), bool),
        16,
        entropy_N=np.asarray(h) * math.log(16),
        reverse_kl_N=np.asarray(divergence, np.float64),
    )


def soft_weights(tip_filter, divergence, step=0):
    scores = one_rollout(np.zeros(len(divergence)), divergence)
    return tip_filter.select(scores, np.zeros(1, np.int64), step).weights_N


def test_divergence_is_clipped_as_asked():
    tip_filter = TipFilter(TipSettings(selection="soft", divergence_clip=0.75))
    weights_N = soft_weights(tip_filter, [0, 1, 2, 3, 100])
    np.testing.assert_allclose(weights_N, [0, 1 / 3, 2 / 3, 1, 1], rtol=1e-6)


def test_streamed_bounds_forget_at_the_rate_asked():
    settings = TipSettings(selection="soft", normalise_over="stream", stream_decay=0.0)
    tip_filter = TipFilter(settings)
    for step, greatest in enumerate((100.0, 10.0)):
        soft_weights(tip_filter, [0, greatest], step)
    np.testing.assert_allclose(soft_weights(tip_filter, [0, 5], 2), [0, 0.5], rtol=0.01)


def test_a_score_at_the_threshold_is_kept():
    tip_filter = TipFilter(
        TipSettings(rule="divergence_topk", selection="threshold", threshold=0.5)
    )
    assert soft_weights(tip_filter, [0.25, 0.5, 1]).tolist() == [0, 1, 1]


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
