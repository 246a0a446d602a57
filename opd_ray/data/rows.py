"""The noun of this package, a prompt with its answer, and how a raw row of columns becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opd_ray.config.data import DataSettings
from opd_ray.data.cells import BadRow, cell_text, kind_name, refuse_half_characters
from opd_ray.errors import OpdError


class DataError(OpdError, ValueError):
    """Prompts that cannot be used; the message says where they are and what to do."""


class MissingData(DataError):
    """A file of prompts that is not on this machine."""


@dataclass(frozen=True)
class PromptRow:
    """One prompt, as text or as chat messages (exactly one of the two)."""

    id: str
    text: str | None
    messages: tuple[Mapping[str, Any], ...] | None
    answer: str | None
    source: str
    # What the teacher reads in place of the prompt; None shows it the student's.
    teacher_text: str | None = None


ROLES = ("system", "user", "assistant", "tool")


BAD_ROWS_SHOWN = 10


@dataclass
class BadRows:
    """The rows of a source that cannot be used; as text, a line for each of the first."""

    count: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, place: str, error: BadRow) -> None:
        self.count += 1
        if self.count <= BAD_ROWS_SHOWN:
            self.lines.append(f"  {place}: {error}")

    def __str__(self) -> str:
        more = self.count - len(self.lines)
        return "\n".join([*self.lines, f"  and {more} more"] if more else self.lines)


class RowReader:
    """Reads raw rows by one field mapping."""

    def __init__(self, settings: DataSettings) -> None:
        self._fields = settings.columns()
        self._adds_system_message = settings.system_prompt is not None

    def read(self, raw: Any, label: str, line: int) -> PromptRow:
        """The file's short name and line stand in for an id and a source that the row lacks.

        Raises:
            BadRow: a row that cannot be used.
        """
        if not isinstance(raw, Mapping):
            raise BadRow(f"a row must be an object with named columns, not {kind_name(raw)}")
        fields = self._fields
        prompt = _column(raw, fields.prompt, "prompt")
        if isinstance(prompt, np.ndarray):
            prompt = prompt.tolist()
        refuse_half_characters(prompt, f"column {fields.prompt!r} (prompt)")
        text, messages = None, None
        if isinstance(prompt, str):
            if not prompt.strip():
                raise BadRow(f"column {fields.prompt!r} (prompt) is empty")
            text = prompt
        else:
            messages = self._messages(prompt)
        return PromptRow(
            id=_text(raw, fields.id, "id") or f"{label}:{line}",
            text=text,
            messages=messages,
            answer=_text(raw, fields.answer, "answer", may_lack=True),
            source=_text(raw, fields.source, "source") or label,
            teacher_text=_text(raw, fields.teacher_prompt, "teacher_prompt"),
        )

    def _messages(self, prompt: Any) -> tuple[Mapping[str, Any], ...]:
        where = f"column {self._fields.prompt!r} (prompt)"
        if not isinstance(prompt, (list, tuple)) or not prompt:
            kind = kind_name(prompt)
            raise BadRow(f"{where} must be text or a list of chat messages, not {kind}")
        for message in prompt:
            if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
                raise BadRow(f"{where}: every chat message needs a role and a text as content")
            if message.get("role") not in ROLES:
                raise BadRow(f"{where}: role {message.get('role')!r} is none of {', '.join(ROLES)}")
        if not any(m["role"] == "user" and m["content"].strip() for m in prompt):
            raise BadRow(f"{where} has no user message with text")
        if self._adds_system_message and any(m["role"] == "system" for m in prompt):
            raise BadRow(f"{where} has a system message of its own: set data.system_prompt to null")
        return tuple(dict(message) for message in prompt)


def _column(raw: Mapping[str, Any], name: str, meaning: str) -> Any:
    """The column of that name; a dotted name that is no column reaches into nested ones."""
    value: Any = raw
    for part in [name] if name in raw else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            have = ", ".join(map(repr, raw)) or "none"
            none = ", or null where there are none" if meaning == "answer" else ""
            raise BadRow(
                f"column {name!r} ({meaning}) is missing; the row has {have}: "
                f"set data.fields.{meaning}{none}"
            )
        value = value[part]
    return value


def _text(
    raw: Mapping[str, Any], name: str | None, meaning: str, *, may_lack: bool = False
) -> str | None:
    """What the column of that name says, never empty; None where no column is named.

    With ``may_lack`` also where the row has null.
    """
    if name is None:
        return None
    value = _column(raw, name, meaning)
    if value is None and may_lack:
        return None
    return cell_text(value, f"column {name!r} ({meaning})")
