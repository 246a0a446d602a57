"""Prompts to token ids: instruction, system message, chat template, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from opd_ray.config.data import PLACEHOLDER, ChatTemplate, DataSettings
from opd_ray.data.rows import DataError, PromptRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(
    rows: Sequence[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    *,
    teacher: bool = False,
) -> list[np.ndarray]:
    """Prompt ids, [P] int32 a row; with ``teacher`` the teacher's prompt where a row has its own.

    A templated prompt ends with the template's opening of the assistant's turn, and gets no further
    special tokens; without a template the tokenizer adds those that it adds by default.

    Raises:
        DataError: chat messages without a template, or a prompt of no tokens.
    """
    if not rows:
        return []
    templated = uses_chat_template(tokenizer, settings)
    texts = [render(row, tokenizer, settings, teacher=teacher) for row in rows]
    ids = tokenizer(texts, add_special_tokens=not templated)["input_ids"]
    for row, row_ids in zip(rows, ids, strict=True):
        if not row_ids:
            raise DataError(f"prompt {row.id!r} has no tokens: the tokenizer drops all of its text")
    return [np.asarray(row_ids, dtype=np.int32) for row_ids in ids]


def tokenize_for_both(
    rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase, settings: DataSettings
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompt ids of every row for the student, and for its teacher; see :func:`tokenize`."""
    student = tokenize(rows, tokenizer, settings)
    if all(row.teacher_text is None for row in rows):
        return student, student
    return student, tokenize(rows, tokenizer, settings, teacher=True)


def uses_chat_template(tokenizer: PreTrainedTokenizerBase, settings: DataSettings) -> bool:
    """Whether prompts go through the tokenizer's chat template.

    Raises:
        DataError: the settings ask for a template and the tokenizer has none.
    """
    has_one = tokenizer.chat_template is not None
    if settings.chat_template == ChatTemplate.always and not has_one:
        raise DataError(
            "data.chat_template = always, but the student's tokenizer has no chat template: "
            "use never, or a tokenizer with one"
        )
    return has_one and settings.chat_template != ChatTemplate.never


def render(
    row: PromptRow,
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    *,
    teacher: bool = False,
) -> str:
    """The text whose tokens are the prompt.

    The instruction goes around the text, or around the last user message of a chat; the teacher's
    own text takes the place of either. Without a template the system prompt stands before the text
    with an empty line between.
    """
    content: str | None = row.teacher_text if teacher and row.teacher_text else row.text
    messages: list[Mapping[str, Any]]
    if content is not None:
        messages = [{"role": "user", "content": content}]
    else:
        assert row.messages is not None
        messages = list(row.messages)
    last_user = max(n for n, message in enumerate(messages) if message["role"] == "user")
    asked = messages[last_user]
    # Not str.format: prompts and instructions are full of other braces.
    instructed = settings.instruction.replace(PLACEHOLDER, asked["content"])
    messages[last_user] = {**asked, "content": instructed}

    if uses_chat_template(tokenizer, settings):
        if settings.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": settings.system_prompt})
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **settings.chat_template_kwargs
        )
    if content is None:
        raise DataError(
            f"prompt {row.id!r} is a list of chat messages, and no chat template is in use: "
            "set data.chat_template to auto and take a tokenizer with a template, or give text"
        )
    if settings.system_prompt is not None:
        return f"{settings.system_prompt}\n\n{instructed}"
    return instructed
