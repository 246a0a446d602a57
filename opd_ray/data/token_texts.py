"""What single tokens look like within a text, where the tokenizer has only whole texts to show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

# Characters of a text that a person is shown; prompts may have tens of thousands.
_MOST_TEXT = 12_000


class TokenTexts:
    """The texts of tokens, each worked out once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def piece(self, token: int) -> str:
        """The token as it stands behind another one; part of a character is U+FFFD.

        Many tokenizers leave the space in front of a text's first token out.
        """
        if token not in self._pieces:
            alone, twice = (self._tokenizer.decode([token] * count) for count in (1, 2))
            behind = twice[len(alone) :] if twice.startswith(alone) else alone
            self._pieces[token] = behind or alone
        return self._pieces[token]

    def of(self, ids: Sequence[int] | np.ndarray) -> str:
        """A text as it is read, special tokens too."""
        return str(self._tokenizer.decode(np.asarray(ids).tolist()))


def shortened(text: str) -> tuple[str, int]:
    """A text without its middle if it is too long, and how many characters are left out."""
    if len(text) <= _MOST_TEXT:
        return text, 0
    half, left_out = _MOST_TEXT // 2, len(text) - _MOST_TEXT
    return f"{text[:half]}\n[... {left_out:,} characters ...]\n{text[-half:]}", left_out
