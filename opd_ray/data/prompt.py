"""The noun of this package: one prompt with its answer, and the error for data no run can use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    # The columns that the field mapping does not use.
    meta: Mapping[str, Any] = field(default_factory=dict)
