"""The four quadrants of entropy and divergence: the tokens in each, and what they are like.

Q1 high h, high divergence; Q2 high h, low divergence; Q3 low h, high divergence (confident and
wrong); Q4 low, low. The paper (arXiv 2604.14084) gives no cuts. Ours are, unless set otherwise, the
medians of the batch: min-max with an unclipped divergence is ruled by the one greatest value, so a
fixed cut of the normalised divergence leaves Q1 and Q3 all but empty, and empties them more or less
from step to step. With medians, a share of 0.25 each means that the two scores are independent. The
cuts are part of the report, and belong wherever a share is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

NAMES = ("Q1", "Q2", "Q3", "Q4")
_STRETCH = 1 << 16  # tokens that are counted at a time


class CutKind(StrEnum):
    """What a cut between quadrants is, of the normalised scores."""

    quantile = "quantile"
    value = "value"


@dataclass(frozen=True)
class Quadrant:
    """Figures of one quadrant; means are None where it is empty."""

    share: float  # of all student tokens
    kept_share: float | None  # of this quadrant's tokens
    mean_h: float | None  # H / ln V, in [0, 1]
    mean_divergence: float | None  # nats
    mean_loss: float | None  # nats; None also where the loss is no score of the batch


@dataclass(frozen=True)
class QuadrantReport:
    """Quadrants by name ("Q1" to "Q4"), and the cuts of the *normalised* scores that made them."""

    h_cut: float
    divergence_cut: float
    quadrants: dict[str, Quadrant]
    index_M: np.ndarray  # [M] uint8, which quadrant each token lies in, 0 to 3

    def as_metrics(self) -> dict[str, float]:
        """Flat figures for a metrics log: ``h_cut``, ``Q1/share`` and so on, leaving out Nones."""
        metrics = {"h_cut": self.h_cut, "divergence_cut": self.divergence_cut}
        for name, quadrant in self.quadrants.items():
            for key, value in vars(quadrant).items():
                if value is not None:
                    metrics[f"{name}/{key}"] = value
        return metrics


def quadrant_report(
    normalised_h_M: np.ndarray,
    normalised_divergence_M: np.ndarray,
    h_M: np.ndarray,
    divergence_M: np.ndarray,
    kept_M: np.ndarray,
    *,
    cut_kind: CutKind,
    h_cut: float,
    divergence_cut: float,
    loss_M: np.ndarray | None = None,
) -> QuadrantReport:
    """Figures of the four quadrants over M tokens (at least one).

    Args:
        normalised_h_M, normalised_divergence_M: what the cuts apply to; strictly above is high.
        h_M, divergence_M, loss_M: what the means are taken of (H / ln V, nats, nats).
        kept_M: the tokens that were selected.
        cut_kind: ``quantile``: ``h_cut`` and ``divergence_cut`` are quantiles of the batch;
            ``value``: they are the cuts themselves.
    """
    if cut_kind == CutKind.quantile:
        h_cut = float(np.quantile(normalised_h_M, np.float64(h_cut)))
        divergence_cut = float(np.quantile(normalised_divergence_M, np.float64(divergence_cut)))
    # Compared in float32, as the scores are.
    index_M = 2 * (normalised_h_M <= np.float32(h_cut)).view(np.uint8)
    index_M += normalised_divergence_M <= np.float32(divergence_cut)
    counts = _sums(index_M, None)

    def means(values_M: np.ndarray | None) -> list[float | None]:
        if values_M is None:
            return [None] * 4
        return [
            float(total / count) if count else None
            for total, count in zip(_sums(index_M, values_M), counts, strict=True)
        ]

    columns = zip(
        (counts / len(index_M)).tolist(),
        means(kept_M),
        means(h_M),
        means(divergence_M),
        means(loss_M),
        strict=True,
    )
    quadrants = {name: Quadrant(*column) for name, column in zip(NAMES, columns, strict=True)}
    return QuadrantReport(h_cut, divergence_cut, quadrants, index_M)


def _sums(index_M: np.ndarray, values_M: np.ndarray | None) -> np.ndarray:
    """The sum of the values in each quadrant, [4] float64; of no values, how many tokens it has.

    By stretches: bincount copies what it counts, at 16 bytes a token.
    """
    return sum(
        (
            np.bincount(
                index_M[start : start + _STRETCH],
                weights=None if values_M is None else values_M[start : start + _STRETCH],
                minlength=4,
            )
            for start in range(0, len(index_M), _STRETCH)
        ),
        np.zeros(4),
    )


def jaccard(kept_M: np.ndarray, other_M: np.ndarray) -> float:
    """Size of the intersection over size of the union of two selections; 1 if both are empty."""
    union = np.count_nonzero(kept_M | other_M)
    return float(np.count_nonzero(kept_M & other_M) / union) if union else 1.0
