"""Order statistics and counts of each rollout, against loops over rollouts."""

from __future__ import annotations

import numpy as np
import pytest

from opd_ray.tip.ragged import count_per_rollout, order_statistics
from opd_ray.tip.select import keep_greatest

SHORT = np.array([0, 3, 1, 0, 40, 2, 0])
LONG = np.array([0, 300, 1, 0, 500, 2, 0])  # sorted one by one


def with_ties(lengths: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Values of some twenty different numbers, flat and by rollout."""
    values = np.random.default_rng(0).normal(size=lengths.sum()).round(1).astype(np.float32)
    return values, np.split(values, np.cumsum(lengths)[:-1])


@pytest.mark.parametrize("lengths", [SHORT, LONG])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_places_in_the_order_of_each_rollout(lengths: np.ndarray, share: float) -> None:
    values, parts = with_ties(lengths)
    places = (share * np.maximum(lengths - 1, 0)).astype(np.int64)
    naive = [sorted(part)[p] if len(part) else 0.0 for part, p in zip(parts, places, strict=True)]
    assert order_statistics(values, lengths, places).tolist() == naive


@pytest.mark.parametrize("lengths", [SHORT, LONG])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_greatest_are_kept_and_of_equals_the_first(lengths: np.ndarray, share: float) -> None:
    values, parts = with_ties(lengths)
    counts = (share * lengths).astype(np.int64)
    kept = []
    for part, count in zip(parts, counts, strict=True):
        best = sorted(range(len(part)), key=lambda i: (-part[i], i))[:count]
        kept += [i in best for i in range(len(part))]
    assert keep_greatest(values, lengths, counts).tolist() == kept


def test_zero_is_as_great_as_minus_zero() -> None:
    scores = np.array([0.0, -0.0, 0.0, -0.0], np.float32)
    kept = keep_greatest(scores, np.array([4]), np.array([2]))
    assert kept.tolist() == [True, True, False, False]


def test_flags_are_counted_in_each_rollout() -> None:
    flags = np.array([True, False, True, True, True, False])
    assert count_per_rollout(flags, np.array([0, 2, 0, 1, 3, 0])).tolist() == [0, 1, 0, 1, 2, 0]
    assert count_per_rollout(flags[:0], np.array([0, 0])).tolist() == [0, 0]
