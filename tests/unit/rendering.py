"""The text that a prompt is before it is tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedTokenizerFast

from opd_ray.config.data import DataSettings
from opd_ray.data.rows import PromptRow
from opd_ray.data.tokenize import tokenize


def render(
    row: PromptRow,
    tokenizer: PreTrainedTokenizerFast,
    settings: DataSettings,
    *,
    teacher: bool = False,
    day: date | None = None,
) -> str:
    """What the tokenizer is given first."""
    given: list[Sequence[str]] = []
    call = PreTrainedTokenizerFast.__call__

    def listening(self: Any, texts: Sequence[str], **options: Any) -> Any:
        given.append(texts)
        return call(self, texts, **options)

    with patch.object(PreTrainedTokenizerFast, "__call__", listening):
        tokenize([row], tokenizer, settings, teacher=teacher, day=day)
    return given[0][0]
