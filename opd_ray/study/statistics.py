"""Means over seeds with Student's t-intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

_GRID = 200_001


@dataclass(frozen=True)
class Interval:
    """A mean of n values; ``half_width`` is NaN where one value gives no spread."""

    mean: float
    half_width: float
    n: int


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and two-sided t-interval of independent values; ValueError if there are none."""
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one value")
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, math.nan, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, t_quantile(level, n - 1) * error, n)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95
) -> Interval | None:
    """Mean of value - baseline over the seeds that both have, by t; None if there are none."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    return t_interval([values[seed] - baseline[seed] for seed in seeds], level)


@cache
def t_quantile(level: float, degrees: int) -> float:
    """t with P(|T| <= t) = ``level`` for Student's T of ``degrees`` degrees of freedom.

    With t = sqrt(degrees) tan(a), P(|T| <= t) is the integral of cos^(degrees - 1) from 0 to a over
    that from 0 to pi / 2.
    """
    angle = np.linspace(0.0, math.pi / 2, _GRID)
    density = np.cos(angle) ** (degrees - 1)
    below = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return math.sqrt(degrees) * math.tan(float(np.interp(level, below / below[-1], angle)))
