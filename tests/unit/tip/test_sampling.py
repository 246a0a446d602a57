"""Sampling without replacement: exact inclusion probabilities, which wrong samplers miss."""

from itertools import permutations

import numpy as np
import pytest

from opd_ray.tip import TipFilter, TipSettings, TokenScores, sampling
from opd_ray.tip.sampling import race_keys, uniforms

WEIGHTS = np.array([0.05, 0.1, 0.2, 0.3, 0.35])
DRAWS = 2
ROLLOUTS = 10_000


def pair_probabilities():
    """P(the set of two drawn), by adding both orders of drawing."""
    chances = {}
    for first, second in permutations(range(len(WEIGHTS)), 2):
        rest = WEIGHTS.sum() - WEIGHTS[first]
        chance = WEIGHTS[first] / WEIGHTS.sum() * WEIGHTS[second] / rest
        pair = frozenset((first, second))
        chances[pair] = chances.get(pair, 0.0) + chance
    return chances


def chi_square(kept_RM):
    """Pearson's statistic of the pairs kept by each rollout, 9 degrees of freedom."""
    codes, counts = np.unique(
        np.asarray(kept_RM) @ 2 ** np.arange(len(WEIGHTS)), return_counts=True
    )
    observed = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    statistic = 0.0
    for pair, chance in pair_probabilities().items():
        expected = len(kept_RM) * chance
        statistic += (observed.get(sum(2**i for i in pair), 0) - expected) ** 2 / expected
    return statistic


# Of a right sampler the statistic exceeds this once in a million.
CRITICAL = 46.0


def entropy_sample(weights, seeds_R):
    """What the rule entropy_sample keeps of len(seeds_R) rollouts that all have these weights."""
    rollouts, tokens = len(seeds_R), len(weights)
    batch = TokenScores(
        lengths_R=np.full(rollouts, tokens),
        response_mask_N=np.ones(rollouts * tokens),
        vocab_size=8,
        entropy_N=np.tile(weights, rollouts),
    )
    filter_ = TipFilter(TipSettings(rule="entropy_sample", rho=DRAWS / tokens, overlap=False))
    return filter_.select(batch, seeds_R, 0).weights_N.reshape(rollouts, tokens) > 0


def test_entropy_sample_draws_in_proportion_without_replacement():
    kept_RM = entropy_sample(WEIGHTS, np.arange(ROLLOUTS))
    assert np.all(kept_RM.sum(axis=1) == DRAWS)
    assert chi_square(kept_RM) < CRITICAL


def test_scaling_the_weights_changes_nothing():
    seeds_R = np.arange(500)
    np.testing.assert_array_equal(
        entropy_sample(WEIGHTS, seeds_R), entropy_sample(WEIGHTS * 4, seeds_R)
    )


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_wrong_weights_are_found_out(power):
    """Uniform, root and squared weights fail the same test."""
    assert chi_square(entropy_sample(WEIGHTS**power, np.arange(ROLLOUTS))) > 5 * CRITICAL


def with_replacement(rng):
    """Both tokens drawn at once; where they are the same, any other token joins it."""
    kept = np.zeros(len(WEIGHTS), dtype=bool)
    kept[rng.choice(len(WEIGHTS), DRAWS, p=WEIGHTS)] = True
    if kept.sum() < DRAWS:
        kept[rng.choice(np.flatnonzero(~kept))] = True
    return kept


def systematic(rng):
    """Inclusion probabilities exactly k w, the common shortcut; not successive draws."""
    grid = (rng.random() + np.arange(DRAWS)) / DRAWS
    kept = np.zeros(len(WEIGHTS), dtype=bool)
    kept[np.searchsorted(np.cumsum(WEIGHTS / WEIGHTS.sum()), grid)] = True
    return kept


@pytest.mark.parametrize("sampler", [with_replacement, systematic])
def test_wrong_samplers_are_found_out(sampler):
    rng = np.random.default_rng(0)
    assert chi_square([sampler(rng) for _ in range(ROLLOUTS)]) > 5 * CRITICAL


def test_same_seeds_for_every_rollout_are_found_out():
    assert chi_square(entropy_sample(WEIGHTS, np.zeros(ROLLOUTS, dtype=int))) > 5 * CRITICAL


def test_numpys_own_sampler_passes():
    """The test itself is right: a known good sampler passes it."""
    rng = np.random.default_rng(0)
    kept_RM = np.zeros((ROLLOUTS, len(WEIGHTS)), dtype=bool)
    for row in kept_RM:
        row[rng.choice(len(WEIGHTS), DRAWS, replace=False, p=WEIGHTS)] = True
    assert chi_square(kept_RM) < CRITICAL


def test_weightless_tokens_fill_up_uniformly():
    """One token of weight among four: it is always drawn; the second is any of the other three."""
    kept_RM = entropy_sample(np.array([0.0, 0.5, 0.0, 0.0]), np.arange(6000))
    assert np.all(kept_RM[:, 1])
    assert np.all(kept_RM.sum(axis=1) == DRAWS)
    counts = kept_RM[:, [0, 2, 3]].sum(axis=0)
    assert np.sum((counts - 2000.0) ** 2 / 2000.0) < 27.6  # 2 degrees of freedom, one in a million


def test_a_draw_depends_on_seed_and_position_alone():
    rng = np.random.default_rng(1)
    entropies = [rng.random(n) for n in (30, 50, 7)]
    seeds = np.array([11, 2**62 + 1, 13])
    filter_ = TipFilter(TipSettings(rule="entropy_sample", rho=0.4))

    def kept(order):
        batch = TokenScores(
            lengths_R=np.array([len(entropies[r]) for r in order]),
            response_mask_N=np.ones(sum(len(entropies[r]) for r in order)),
            vocab_size=8,
            entropy_N=np.concatenate([entropies[r] for r in order]),
        )
        weights_N = filter_.select(batch, seeds[order], step=3).weights_N
        parts = np.split(weights_N, np.cumsum(batch.lengths_R)[:-1])
        return {r: part.tolist() for r, part in zip(order, parts, strict=True)}

    together = kept([0, 1, 2])
    assert kept([2, 0, 1]) == together
    assert kept([1]) == {1: together[1]}


def test_uniforms_are_uniform_and_uncorrelated():
    lengths_R = np.full(400, 250)
    numbers = uniforms(np.arange(400), lengths_R, np.tile(np.arange(250), 400), salt=7)
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    assert np.sum((counts - 2000.0) ** 2 / 2000.0) < 110  # 49 degrees of freedom, one in a million
    grid = numbers.reshape(400, 250)
    for first, second in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / np.sqrt(first.size)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"must not be negative.*-1"):
        race_keys(np.array([1.0, -1.0]), np.array([0.5, 0.5]))


@pytest.mark.parametrize("together", [1, 2, 64])
def test_keys_are_the_same_however_many_rollouts_draw_together(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_TOGETHER", together)
    lengths, seeds = np.array([2, 0, 3, 1]), np.array([5, 6, 7, 5])
    positions, weights = np.array([0, 3, 1, 2, 9, 0]), np.arange(6, dtype=np.float32)
    found = sampling.drawn_keys(weights, seeds, lengths, positions, salt=3)
    draws = [
        uniforms(np.array([seed]), np.array([1]), np.array([position]), salt=3)
        for seed, position in zip([5, 5, 7, 7, 7, 5], positions, strict=True)
    ]
    assert found.tolist() == race_keys(weights, np.concatenate(draws)).tolist()
