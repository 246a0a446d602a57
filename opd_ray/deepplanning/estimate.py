"""Shares with a standard error that treats tasks, not samples, as drawn independently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] and its standard error, nan for a single task."""

    value: float
    standard_error: float
    tasks: int

    def __str__(self) -> str:
        error = "" if isnan(self.standard_error) else f" ± {self.standard_error:.1%}"
        return f"{self.value:.1%}{error}"


def share(parts: Sequence[float], wholes: Sequence[float]) -> Share:
    """Sum of ``parts`` over sum of ``wholes``, one of each a task.

    The standard error is that of a ratio of two sums over tasks (linearised, ddof 1); where all
    wholes are equal it is that of a mean over tasks.

    Raises:
        ValueError: no tasks, or no whole above 0.
    """
    if len(parts) != len(wholes) or not sum(wholes) > 0:
        raise ValueError("a share needs tasks, one part and one whole of each")
    count = len(parts)
    value = sum(parts) / sum(wholes)
    spread = sum((part - value * whole) ** 2 for part, whole in zip(parts, wholes, strict=True))
    error = sqrt(count / (count - 1) * spread) / sum(wholes) if count > 1 else nan
    return Share(value, error, count)
