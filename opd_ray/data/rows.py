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
    place: str = ""  # file and line, for messages
    # All columns of the row, for its environment; {} where nobody asks for them.
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.place or f"prompt {self.id!r}"


ROLES = ("system", "developer", "user", "assistant", "tool")


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
    """Reads raw rows by one field mapping, with ``all_columns`` the others beside it."""

    def __init__(self, settings: DataSettings, *, all_columns: bool = False) -> None:
        self._all_columns = all_columns
        self._fields = settings.columns()
        self._adds_system_message = settings.system_prompt is not None

    def read(self, raw: Any, label: str, line: int, place: str = "") -> PromptRow:
        """The file's short name and line stand in for an id and a source that the row lacks.

        ``place`` is where the row is, as messages are to say it.

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
            place=place,
            columns=dict(raw) if self._all_columns else {},
        )

    def _messages(self, prompt: Any) -> tuple[Mapping[str, Any], ...]:
        where = f"column {self._fields.prompt!r} (prompt)"
        chat = _without_nulls(prompt)
        if not isinstance(chat, list):
            raise BadRow(f"{where} must be text or a list of chat messages, not {kind_name(chat)}")
        if not chat:
            raise BadRow(f"{where} is an empty list: give at least one chat message")
        messages = tuple(_message(found, where, number) for number, found in enumerate(chat, 1))
        asked = [message for message in messages if message["role"] == "user"]
        if not asked or not asked[-1].get("content", "").strip():
            raise BadRow(f"{where} has no user message with text, or its last one is empty")
        if messages[-1]["role"] == "assistant" and "content" not in messages[-1]:
            raise BadRow(
                f"{where} ends with tool calls of the assistant: end it with the tools' answers, "
                "or with a message that the student can go on from"
            )
        if self._adds_system_message and any(m["role"] == "system" for m in messages):
            raise BadRow(f"{where} has a system message of its own: set data.system_prompt to null")
        return messages


def _message(raw: Any, where: str, number: int) -> dict[str, Any]:
    """One message of a chat, counted from 1, with its content as text."""
    asked = f"{where}: every chat message needs a role and a text as content"
    if not isinstance(raw, dict):
        raise BadRow(f"{asked}; message {number} is {kind_name(raw)}")
    there = ", ".join(map(repr, raw)) or "nothing"
    if "role" not in raw:
        raise BadRow(f"{asked}; message {number} has {there}")
    if raw["role"] not in ROLES:
        raise BadRow(f"{where}: role {raw['role']!r} is none of {', '.join(ROLES)}")
    content = raw.get("content")
    if isinstance(content, list):
        content = _joined_parts(content, f"{where}, message {number}")
    if isinstance(content, str):
        return {**raw, "content": content}
    if content is None and raw["role"] == "assistant" and raw.get("tool_calls"):
        return dict(raw)
    found = "has " + there if content is None else f"has {kind_name(content)} as content"
    raise BadRow(f"{asked}; message {number} {found}")


def _joined_parts(parts: list[Any], where: str) -> str:
    """The text of a content that is a list of parts, one a line."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else kind_name(part)
            raise BadRow(f"{where} has a part of type {kind!r}: a prompt is text alone")
        texts.append(text)
    return "\n".join(texts)


def _without_nulls(value: Any) -> Any:
    """Nested lists and objects without what is null in them.

    A table gives every message all the keys that any message of it has; those that a message does
    not have are null, and chat templates take a key that is there for one that says something.
    """
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, np.ndarray):  # as pandas reads a column of lists
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_without_nulls(inner) for inner in value if inner is not None]
    return value


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
