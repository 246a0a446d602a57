"""The prompts of a step, as token ids for student and teacher."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One prompt of a batch."""

    key: str  # unique within its batch
    answer: str
    source: str
    student_ids: np.ndarray  # [P] int32
    teacher_ids: np.ndarray  # [P'] int32; the student's own unless the row has a teacher prompt


def unique_keys(ids: list[str]) -> list[str]:
    """The ids, with ``#1``, ``#2``... where one comes again: a small data set may repeat within a batch."""
    seen: Counter[str] = Counter()
    keys = []
    for row_id in ids:
        keys.append(f"{row_id}#{seen[row_id]}" if seen[row_id] else row_id)
        seen[row_id] += 1
    return keys
