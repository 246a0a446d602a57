"""The one place where rows of a response and positions of its text meet.

Response token t stands at position P + t of prompt plus response, and a causal model's output at
the position before it predicts it: row t of every per-token array is read at P + t - 1.
"""

from __future__ import annotations

import numpy as np


def predicting_positions(prompt_tokens: int, rows: np.ndarray) -> np.ndarray:
    """Positions whose output predicts the given response rows.

    Args:
        prompt_tokens: P, at least 1.
        rows: [n] response rows, from 0.

    Raises:
        ValueError: an empty prompt, after which nothing predicts the first response token.
    """
    if prompt_tokens < 1:
        raise ValueError("the prompt is empty: nothing predicts the first response token")
    return prompt_tokens - 1 + rows
