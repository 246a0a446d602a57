"""The filter around the rules: counts, schedules, ways to select."""

import json
import math

import numpy as np
import pytest
from tip_batches import LENGTHS, SEEDS, batch, kept, one_rollout

from opd_ray.tip import MissingScoreError, TipFilter, TipSettings, TokenScores
from opd_ray.tip.select import keep_greatest, share_counts


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


def test_scores_that_are_looked_at():
    shown = {"entropy", "reverse_kl"}
    assert TipFilter(TipSettings(rule="random", overlap=False)).reads == shown
    settings = TipSettings(rule="product", divergence="jsd", overlap=False)
    assert TipFilter(settings, loss_score="forward_kl").reads == {"entropy", "jsd", "forward_kl"}
    others = {"forward_kl", "jsd", "teacher_mass", "union_forward_kl"}
    assert TipFilter(TipSettings()).reads == shown | others
