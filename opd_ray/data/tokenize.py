"""Prompts to token ids: instruction, system message, chat template, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from opd_ray.borders import border
from opd_ray.config.data import PLACEHOLDER, DataSettings
from opd_ray.data.cells import BadRow
from opd_ray.data.chat_template import (
    apply_chat_template,
    template_options,
    uses_chat_template,
)
from opd_ray.data.prompt_account import PromptAccount, special_tokens
from opd_ray.data.rows import BadRows, DataError, PromptRow
from opd_ray.environments.by_source import NO_ENVIRONMENTS, RunEnvironments
from opd_ray.types import EpisodeStart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = list[Mapping[str, Any]]


def tokenize(
    rows: Sequence[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    *,
    teacher: bool = False,
    section: str = "data",
    day: date | None = None,
    account: PromptAccount | None = None,
    environments: RunEnvironments = NO_ENVIRONMENTS,
) -> list[np.ndarray]:
    """Prompt ids, [P] int32 a row; with ``teacher`` the teacher's prompt where a row has its own.

    The instruction goes around the text, or around the last user message of a chat; the teacher's
    own text takes the place of either, and keeps what the student is to go on with behind it.
    Without a template the system prompt stands before the text with an empty line between.

    A templated prompt ends with the template's opening of the assistant's turn, and gets no further
    special tokens. Without a template the tokenizer adds those that it adds by default before a
    text; what it adds behind one, where the response begins, is taken off.

    Args:
        rows: to be written.
        tokenizer: the student's.
        settings: how they are written.
        teacher: see above.
        section: what messages call the settings.
        day: what templates that read the clock are told; None: today.
        account: counts what a user may not expect of these prompts.
        environments: whose tools the template shows.

    Raises:
        DataError: chat messages without a template, text that template or tokenizer refuse, or a
            prompt of no tokens; names the rows.
    """
    if not rows:
        return []
    writer = _Writer(tokenizer, settings, section, day, environments)
    account = account or PromptAccount()
    texts = writer.texts(rows, account, teacher=teacher)
    ids = writer.ids(rows, texts)
    if not writer.templated:
        before, behind = writer.added(texts[0])
        pairs = zip(rows, ids, strict=True)
        ids = [writer.own(row, found, before, behind, account) for row, found in pairs]
    for row, row_ids in zip(rows, ids, strict=True):
        if not row_ids:
            raise DataError(f"{row.name} has no tokens: the tokenizer drops all of its text")
        account.see_ids(row, row_ids, tokenizer)
    return [np.asarray(row_ids, dtype=np.int32) for row_ids in ids]


def tokenize_for_both(
    rows: Sequence[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    *,
    section: str = "data",
    day: date | None = None,
    account: PromptAccount | None = None,
    environments: RunEnvironments = NO_ENVIRONMENTS,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompt ids of every row for the student, and for its teacher; see :func:`tokenize`."""
    write = partial(
        tokenize, rows, tokenizer, settings, section=section, day=day, environments=environments
    )
    student = write(account=account)
    if all(row.teacher_text is None for row in rows):
        return student, student
    return student, write(teacher=True)


def episode_start(
    row: PromptRow,
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    day: date | None = None,
) -> EpisodeStart:
    """What a rollout of several turns begins with at a row that :func:`tokenize` takes."""
    conversation = _Writer(tokenizer, settings, "data", day).conversation(row, teacher=False)
    prompt = [dict(message) for message in conversation]
    return EpisodeStart(
        {**row.columns, "prompt": prompt}, template_options(tokenizer, settings, day)
    )


class _Writer:
    """How the prompts of one section are written."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: DataSettings,
        section: str,
        day: date | None,
        environments: RunEnvironments = NO_ENVIRONMENTS,
    ) -> None:
        self._environments = environments
        self.templated = uses_chat_template(tokenizer, settings, section)
        self._tokenizer = tokenizer
        self._settings = settings
        self._section = section
        self._day = day

    def texts(
        self, rows: Sequence[PromptRow], account: PromptAccount, *, teacher: bool
    ) -> list[str]:
        """One a row.

        Raises:
            DataError: lists the rows that cannot be written.
        """
        special = special_tokens(self._tokenizer) if self.templated else ()
        texts, bad = [], BadRows()
        for row in rows:
            try:
                conversation = self.conversation(row, teacher=teacher)
                texts.append(self.text(row, conversation))
            except BadRow as error:
                bad.add(row.name, error)
                continue
            if self.templated:
                account.see_text(row, conversation, texts[-1], special)
        if bad.count:
            raise DataError(
                f"{self._section}: these prompts cannot be written; mend or remove them:\n{bad}"
            )
        return texts

    def conversation(self, row: PromptRow, *, teacher: bool) -> Conversation:
        """The messages that go into the template, or into one text."""
        settings = self._settings
        if row.messages is not None and not self.templated:
            raise BadRow(
                "is a list of chat messages, and no chat template is in use: set "
                f"{self._section}.chat_template to auto and take a tokenizer with a template, or "
                "give text"
            )
        acts = self._environments.of(row.source) is not None
        if acts and not self.templated:
            raise BadRow(
                "has an environment, and no chat template is in use, which writes what stands "
                f"between turns: set {self._section}.chat_template to auto and take a tokenizer "
                "with a template, or set environment.path to null"
            )
        messages: Conversation = list(row.messages or ())
        content = row.teacher_text if teacher and row.teacher_text else row.text
        if content is not None:
            # Student and teacher go on with the same message.
            begun = [message for message in messages[-1:] if message["role"] == "assistant"]
            messages = [{"role": "user", "content": content}, *begun]
        if acts and messages[-1]["role"] == "assistant":
            raise BadRow(
                "ends with a message of the assistant, and has an environment, in which the "
                "student begins its own turns: end it with a message of the user"
            )
        last_user = max(n for n, message in enumerate(messages) if message["role"] == "user")
        asked = messages[last_user]
        # Not str.format: prompts and instructions are full of other braces.
        instructed = settings.instruction.replace(PLACEHOLDER, asked["content"])
        messages[last_user] = {**asked, "content": instructed}
        if settings.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": settings.system_prompt})
        return messages

    def text(self, row: PromptRow, conversation: Conversation) -> str:
        if not self.templated:
            return "\n\n".join(message["content"] for message in conversation)
        with border("the chat template", "it takes no such conversation", BadRow):
            return apply_chat_template(
                conversation,
                self._tokenizer,
                self._settings,
                self._day,
                tools=self._environments.tools_of(row.source),
            )

    def ids(self, rows: Sequence[PromptRow], texts: Sequence[str]) -> list[list[int]]:
        """Of each text, with what the tokenizer adds where no template does."""
        place = rows[0].name if len(rows) == 1 else self._section
        try:
            with border(f"{place}: the tokenizer", "mend or remove the text", DataError):
                special = not self.templated
                return self._tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        except DataError:
            for row, text in zip(rows, texts, strict=True) if len(rows) > 1 else ():
                self.ids([row], [text])  # names the row
            raise

    def added(self, text: str) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer adds before and behind a text, as it does to this one."""
        (whole,) = self._tokenizer([text], add_special_tokens=True)["input_ids"]
        (bare,) = self._tokenizer([text], add_special_tokens=False)["input_ids"]
        for at in range(len(whole) - len(bare) + 1):
            if bare and whole[at : at + len(bare)] == bare:
                return whole[:at], whole[at + len(bare) :]
        return [], []

    def own(
        self,
        row: PromptRow,
        ids: list[int],
        before: list[int],
        behind: list[int],
        account: PromptAccount,
    ) -> list[int]:
        """Without the tokens behind the text, or a second begin token where it has its own."""
        tokenizer = self._tokenizer
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        # A tokenizer may have the response begin with its begin token, which then stays.
        taken = 0
        while taken < len(behind) and (begin == end or behind[-1 - taken] != begin):
            taken += 1
        if taken and ids[-taken:] == behind[-taken:]:
            account.taken_off |= set(tokenizer.convert_ids_to_tokens(ids[-taken:]))
            ids = ids[:-taken]
        at = len(before)
        if at and before[-1] == begin and ids[at : at + 1] == [begin]:
            account.own_begin.add(row)
            ids = ids[: at - 1] + ids[at:]
        return ids
