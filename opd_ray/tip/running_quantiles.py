"""Running quantiles of scores over earlier steps, so that normalising need not wait for a batch.

A histogram a score, its counts decaying from step to step. Counts add up, so the order in which the
rollouts of a step arrive changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Bins are even in arcsinh(value / SCALE): linear around 0, logarithmic beyond (0.8 % a bin), for
# both signs. 2 * HALF + 1 of them reach any float32.
_SCALE = 1e-9
_BINS_PER_UNIT = 128.0
_HALF = 1 << 14
# A bin worth less than this many tokens is dropped: at a decay of 0.9, a value seen once is
# forgotten as an extreme after seven steps.
_LEAST_WEIGHT = 0.5


class RunningQuantiles:
    """Decayed histograms by score name. Values of the current step count from the next step on."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._step: int | None = None
        self._earlier: dict[str, np.ndarray] = {}
        self._current: dict[str, np.ndarray] = {}

    def begin_step(self, step: int) -> None:
        """Let what was observed at another step count as earlier; the same step changes nothing."""
        if step == self._step:
            return
        self._step = step
        for name, counts in self._current.items():
            earlier = self._earlier.get(name, np.zeros_like(counts)) * self._decay
            earlier[earlier < _LEAST_WEIGHT] = 0.0
            self._earlier[name] = earlier + counts
        self._current = {}

    def observe(self, name: str, values_M: np.ndarray) -> None:
        """Count values of the current step; they take effect with the next one."""
        counts = np.bincount(_bins(values_M), minlength=2 * _HALF + 1).astype(np.float64)
        self._current[name] = self._current.get(name, np.zeros_like(counts)) + counts

    def knows(self, name: str) -> bool:
        """Whether an earlier step has shown values of ``name``."""
        return name in self._earlier and bool(self._earlier[name].any())

    def quantile(self, name: str, q: float) -> float:
        """The q-quantile of earlier values, to 0.4 %; 0 and 1: the extremes not yet forgotten."""
        counts = self._earlier[name]
        occupied = np.flatnonzero(counts)
        reached = np.cumsum(counts[occupied])
        index = int(np.searchsorted(reached, q * reached[-1]))
        return float(_centres(occupied[min(index, len(occupied) - 1)]))

    def rank(self, name: str, values_M: np.ndarray) -> np.ndarray:
        """Share of earlier values in lower bins than each value's, [M] float32."""
        counts = self._earlier[name]
        below = np.cumsum(counts) - counts
        return (below / counts.sum()).astype(np.float32)[_bins(values_M)]

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers, strings and lists, fit for JSON."""
        return {
            "step": self._step,
            "earlier": {name: _sparse(counts) for name, counts in self._earlier.items()},
            "current": {name: _sparse(counts) for name, counts in self._current.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._step = state["step"]
        self._earlier = {name: _dense(counts) for name, counts in state["earlier"].items()}
        self._current = {name: _dense(counts) for name, counts in state["current"].items()}


def _bins(values_M: np.ndarray) -> np.ndarray:
    places_M = np.arcsinh(values_M.astype(np.float64) / _SCALE)
    places_M *= _BINS_PER_UNIT
    places_M += _HALF
    return np.rint(places_M, out=places_M).astype(np.int64)


def _centres(bins: np.ndarray) -> np.ndarray:
    return np.sinh((bins - _HALF) / _BINS_PER_UNIT) * _SCALE


def _sparse(counts: np.ndarray) -> dict[str, list[float]]:
    occupied = np.flatnonzero(counts)
    return {"bins": occupied.tolist(), "counts": counts[occupied].tolist()}


def _dense(sparse: dict[str, list[float]]) -> np.ndarray:
    counts = np.zeros(2 * _HALF + 1)
    counts[np.array(sparse["bins"], dtype=np.int64)] = sparse["counts"]
    return counts
