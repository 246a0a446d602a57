"""The one place where positions of a sequence and rows of a response meet."""

from __future__ import annotations


def predicting_positions(prompt_tokens: int, response_tokens: int) -> slice:
    """Positions of prompt plus response whose output predicts the response: row t is at P + t - 1.

    Raises:
        ValueError: an empty prompt, after which nothing predicts the first response token.
    """
    if prompt_tokens < 1:
        raise ValueError("the prompt is empty: nothing predicts the first response token")
    return slice(prompt_tokens - 1, prompt_tokens + response_tokens - 1)
