"""Bring a score to [0, 1]: over the batch, each rollout or turn, or by what earlier steps showed.

All but ``rank`` rescale: clip((z - low) / (high - low), 0, 1) with two quantiles as low and high,
so min-max with clipping at a quantile (the paper's way) is low = minimum, high = that quantile.
Where low = high, as for constant input, the result is 0. Every function sees response-mask-1 tokens
only.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from opd_ray.tip.ragged import order_code, order_statistics, rollout_starts
from opd_ray.tip.running_quantiles import RunningQuantiles


class Normalisation(StrEnum):
    """How a score is brought to [0, 1]."""

    min_max = "min_max"
    q05_q95 = "q05_q95"
    rank = "rank"


class NormaliseOver(StrEnum):
    """The tokens by which it is."""

    batch = "batch"
    rollout = "rollout"
    turn = "turn"
    stream = "stream"


def normalise(
    values_M: np.ndarray,
    lengths_R: np.ndarray,
    *,
    method: Normalisation,
    scope: NormaliseOver,
    clip: float = 1.0,
    earlier: RunningQuantiles | None = None,
    name: str = "",
) -> np.ndarray:
    """``values_M`` normalised to [0, 1], [M] float32.

    Args:
        values_M: one score of M tokens, rollout after rollout.
        lengths_R: tokens of each rollout; with scope ``turn``, of each turn of each rollout.
        method: ``min_max``; ``q05_q95``; or ``rank``, the share of the other tokens below this one
            (equal values share the lower rank, so constant input gives 0).
        scope: ``batch`` (the paper), ``rollout``, ``turn``, or ``stream``: the quantiles that
            ``earlier`` holds for the score ``name``; as long as it holds none, those of the tokens
            at hand.
        clip: with ``min_max``, the quantile above which values count as equal; 1 clips nothing.
    """
    if len(values_M) == 0:
        return np.zeros(0, dtype=np.float32)
    if scope == NormaliseOver.stream and earlier is not None and earlier.knows(name):
        if method == Normalisation.rank:
            return earlier.rank(name, values_M)
        low, high = (earlier.quantile(name, q) for q in _quantiles(method, clip))
        return rescale(values_M, low, high)
    if scope in (NormaliseOver.rollout, NormaliseOver.turn):
        if method == Normalisation.rank:
            return rank(values_M, lengths_R)
        low_R, high_R = rollout_quantiles(values_M, lengths_R, _quantiles(method, clip))
        return rescale(values_M, np.repeat(low_R, lengths_R), np.repeat(high_R, lengths_R))
    if method == Normalisation.rank:
        return rank(values_M, np.array([len(values_M)]))
    low, high = (batch_quantile(values_M, q) for q in _quantiles(method, clip))
    return rescale(values_M, low, high)


def _quantiles(method: Normalisation, clip: float) -> tuple[float, float]:
    return (0.05, 0.95) if method == Normalisation.q05_q95 else (0.0, clip)


def rescale(values_M: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """clip((z - low) / (high - low), 0, 1), [M] float32; 0 where high is not above low."""
    low = np.asarray(low, dtype=np.float32)
    span = np.asarray(high, dtype=np.float32) - low
    # Where there is no span, z - low is clipped at 0 and divided by infinity.
    scaled_M = values_M.astype(np.float32) - low
    np.maximum(scaled_M, 0.0, out=scaled_M)
    scaled_M /= np.where(span > 0, span, np.float32(np.inf))
    return np.minimum(scaled_M, 1.0, out=scaled_M)


def batch_quantile(values_M: np.ndarray, q: float) -> float:
    """The q-quantile of all values, linear between neighbours, in time linear in M."""
    if q == 0.0:
        return float(values_M.min())
    if q == 1.0:
        return float(values_M.max())
    # q as float64: a Python float would make numpy work out the index in float32.
    return float(np.quantile(values_M, np.float64(q)))


def rollout_quantiles(
    values_M: np.ndarray, lengths_R: np.ndarray, quantiles: tuple[float, ...]
) -> list[np.ndarray]:
    """Each q-quantile of each rollout, linear between neighbours, [R] float64; 0 if empty."""
    last_R = np.maximum(lengths_R - 1, 0)
    results = []
    for q in quantiles:
        place_R = q * last_R
        below_R = np.floor(place_R).astype(np.int64)
        quantile_R = order_statistics(values_M, lengths_R, below_R).astype(np.float64)
        between_R = place_R - below_R
        if between_R.any():  # not of the extremes
            above_R = np.minimum(below_R + 1, last_R)
            high_R = order_statistics(values_M, lengths_R, above_R)
            quantile_R += (high_R - quantile_R) * between_R
        results.append(quantile_R)
    return results


def rank(values_M: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
    """Share of the other tokens of the rollout that lie below each token, [M] float32 in [0, 1]."""
    packed_M = np.repeat(np.arange(len(lengths_R), dtype=np.uint64), lengths_R) << np.uint64(32)
    packed_M |= order_code(values_M)
    order_M = np.argsort(packed_M, kind="stable")
    sorted_M = packed_M[order_M]
    # The first of a run of equal values gives its rank to the whole run.
    first_M = np.concatenate(([True], sorted_M[1:] != sorted_M[:-1]))
    place_M = np.maximum.accumulate(np.where(first_M, np.arange(len(sorted_M)), 0))
    place_M -= np.repeat(rollout_starts(lengths_R), lengths_R)
    others_M = np.maximum(np.repeat(lengths_R, lengths_R) - 1, 1)
    ranks_M = np.empty(len(values_M), dtype=np.float32)
    ranks_M[order_M] = place_M / others_M
    return ranks_M
