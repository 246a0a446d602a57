"""The shift between rows of a response and positions of its text."""

from __future__ import annotations

import numpy as np
import pytest

from opd_ray.batching.alignment import predicting_positions


def test_every_row_is_predicted_one_position_before_its_token() -> None:
    # Prompt a b c, response X Y Z: X is predicted after c (position 2), Y after X, Z after Y.
    positions = predicting_positions(3, np.arange(3))
    assert ["abcXYZ"[position] for position in positions] == ["c", "X", "Y"]


def test_some_rows_only() -> None:
    assert predicting_positions(4, np.array([0, 2, 5])).tolist() == [3, 5, 8]
    assert predicting_positions(1, np.array([0])).tolist() == [0]


def test_an_empty_prompt_predicts_nothing() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        predicting_positions(0, np.arange(2))
