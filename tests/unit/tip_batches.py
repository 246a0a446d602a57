"""Batches of token scores for tests of the filter, and what it keeps of them."""

import math

import numpy as np

from opd_ray.tip import TipFilter, TokenScores

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


def one_rollout(h, divergence):
    return TokenScores(
        np.array([len(divergence)]),
        np.ones(len(divergence), bool),
        16,
        entropy_N=np.asarray(h) * math.log(16),
        reverse_kl_N=np.asarray(divergence, np.float64),
    )
