"""The plot of the last step's tokens: filled where kept, with lines where the quadrants meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd_ray.coordinator import report
from opd_ray.coordinator.metrics import StepSnapshot
from opd_ray.coordinator.report import plot_quadrants, raw_cut
from opd_ray.tip import TipFilter, TipSettings, TokenScores

# In the middle a token that the student did not write.
ENTROPY = [0.1, 2.0, 0.2, 0.0, 1.5, 0.1, 1.0]
REVERSE_KL = [0.0, 1.0, 0.9, 9.0, 0.1, 0.2, 2.0]
MASK = np.array([1, 1, 1, 0, 1, 1, 1], bool)


def drawn(
    monkeypatch: pytest.MonkeyPatch, settings: TipSettings, entropy: Sequence[float] = ENTROPY
) -> tuple[Any, np.ndarray]:
    """The plot's axes, and which of the student's tokens were kept."""
    scores = TokenScores(
        np.array([4, 3]),
        MASK,
        vocab_size=16,
        entropy_N=np.array(entropy),
        reverse_kl_N=np.array(REVERSE_KL),
    )
    selection = TipFilter(settings).select(scores, np.zeros(2, np.int64), 0)
    figures: list[Any] = []
    monkeypatch.setattr(report, "write_figure", lambda figure, path: figures.append(figure))
    plot_quadrants(StepSnapshot([], scores, selection), "reverse_kl", Path("unused"))
    return figures[0].axes[0], selection.weights_N[MASK] > 0


def test_kept_tokens_are_filled_and_cuts_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    axes, kept = drawn(monkeypatch, TipSettings(rule="soft_or", rho=0.5))
    filled = sum(len(one.get_offsets()) for one in axes.collections if len(one.get_facecolors()))
    assert filled == kept.sum() == 2  # half of each response, rounded down
    assert sum(len(one.get_offsets()) for one in axes.collections) == MASK.sum()
    vertical, horizontal = axes.lines
    # Halfway between the third and the fourth of six.
    assert vertical.get_xdata()[0] == pytest.approx(np.mean([0.2, 1.0]) / np.log(16))
    assert horizontal.get_ydata()[0] == pytest.approx(np.mean([0.2, 0.9]))
    shares = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shares[0] == "Q1: 33% of the tokens, 100% of them kept"


def test_no_line_where_each_response_has_a_cut_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Low in the second response is above high in the first.
    entropy = [0.01, 0.2, 0.02, 0.0, 1.5, 0.9, 1.2]
    axes, _ = drawn(monkeypatch, TipSettings(rule="soft_or", normalise_over="rollout"), entropy)
    (horizontal,) = axes.lines
    assert horizontal.get_ydata()[0] == horizontal.get_ydata()[1]


@pytest.mark.parametrize(
    ("high", "cut"),
    [([0, 0, 1], 2.5), ([0, 1, 1], 1.5), ([1, 0, 0], None), ([1, 1, 1], None), ([0, 0, 0], None)],
)
def test_where_a_cut_lies(high: list[int], cut: float | None) -> None:
    assert raw_cut(np.array([1.0, 2.0, 3.0]), np.array(high, bool)) == cut
