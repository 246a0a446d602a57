"""What a user may not expect of how prompts are written, counted row by row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opd_ray.data.rows import PromptRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST_SPECIAL = 3
# A chat that went through json.dumps or str() on its way into a column of texts.
_CHAT_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")


@dataclass
class _Count:
    """So many rows, and the first of them."""

    rows: int = 0
    first: str = ""

    def add(self, row: PromptRow) -> None:
        self.rows += 1
        self.first = self.first or row.name

    def __str__(self) -> str:
        rows = "1 prompt" if self.rows == 1 else f"{self.rows} prompts"
        return f"{rows} ({'' if self.rows == 1 else 'first '}{self.first})"


@dataclass
class PromptAccount:
    """Counts over the prompts of one source."""

    taken_off: set[str] = field(default_factory=set)  # tokens that the tokenizer adds behind texts
    own_begin: _Count = field(default_factory=_Count)  # begin with a begin token of their own
    ended: _Count = field(default_factory=_Count)  # end with an end token
    twice: _Count = field(default_factory=_Count)  # look as if they had been through a template
    spelled: _Count = field(default_factory=_Count)  # are texts that spell a chat
    left_out: dict[str, _Count] = field(default_factory=dict)  # by the role that is not written

    def see_text(
        self,
        row: PromptRow,
        messages: Sequence[Mapping[str, Any]],
        text: str,
        special: tuple[str, ...],
    ) -> None:
        """One prompt that went through a template: its conversation, and what became of it.

        ``special`` are the tokenizer's :func:`special_tokens`.
        """
        last = [m["content"] for m in messages if m["role"] == "user"][-1]
        if last.lstrip().startswith(special):
            self.twice.add(row)
        # What the assistant and tools said may be shortened or written as JSON.
        asked = [m for m in messages if m["role"] in ("system", "developer", "user")]
        for role in {m["role"] for m in asked if m["content"].strip() not in text}:
            self.left_out.setdefault(role, _Count()).add(row)

    def see_ids(
        self, row: PromptRow, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """One prompt's ids as the student reads them."""
        if ids[-1] == tokenizer.eos_token_id:
            self.ended.add(row)
        if row.text is not None and _CHAT_AS_TEXT.match(row.text):
            self.spelled.add(row)

    def notes(self, section: str) -> list[str]:
        """A line for everything that was counted."""
        found = []
        if self.taken_off:
            tokens = ", ".join(map(repr, sorted(self.taken_off)))
            found.append(
                f"the tokenizer adds {tokens} behind every text: the prompts of {section} go "
                "without, as the response begins there"
            )
        if self.own_begin.rows:
            found.append(
                f"{section}: {self.own_begin} begin with a begin token themselves: the tokenizer's "
                "own is left out there"
            )
        if self.ended.rows:
            found.append(
                f"{section}: {self.ended} end with the end token, behind which a student has "
                "nothing to write: take it off the text"
            )
        if self.twice.rows:
            found.append(
                f"{section}: {self.twice} begin with a special token within the chat template: if "
                f"they have been through a template already, set {section}.chat_template to never"
            )
        if self.spelled.rows:
            found.append(
                f"{section}: {self.spelled} spell a list of chat messages as text, and are read as "
                "plain text: give the list itself where a chat is meant"
            )
        found += [
            f"{section}: {count}: the chat template leaves out or changes the text of a {role} "
            "message"
            for role, count in self.left_out.items()
        ]
        return found


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Special tokens as text, but for short ones, which stand in ordinary text too."""
    added = tokenizer.added_tokens_decoder.values()
    return tuple(t.content for t in added if t.special and len(t.content) >= _SHORTEST_SPECIAL)
