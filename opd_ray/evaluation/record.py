"""One problem's responses with their verdicts: a line of an evaluation's JSONL files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ProblemRecord:
    """Everything that was answered to one problem; the lists have one entry a response."""

    id: str
    answer: str  # the gold answer
    responses: list[str]
    extracted: list[str | None]  # the answer each response gives; None: it gives none
    correct: list[bool]
    tokens: list[int]  # length of each response
    finish_reasons: list[str]  # "stop", or "length" for a response that was cut off

    def to_line(self) -> str:
        """The record as a line of JSON, with its line break."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> ProblemRecord:
        """The record that `to_line` wrote."""
        return cls(**json.loads(line))
