"""Some steps of a run seen from close by, in ``close_ups.jsonl``: what report.html shows of them.

A row is one of the records below, with its ``kind``. Arrays are texts: base64 of their
little-endian bytes, whose type the field says.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from opd_ray.appended_file import whole_lines
from opd_ray.borders import border
from opd_ray.errors import InputError
from opd_ray.output.step_rows import StepRows
from opd_ray.typed_json import made_of


def packed(values: np.ndarray, dtype: str) -> str:
    """An array as a text; ``dtype`` as numpy names it, little-endian ("<f4")."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode()


def unpacked(text: str, dtype: str) -> np.ndarray:
    """What :func:`packed` made a text of, as one axis."""
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


@dataclass(frozen=True)
class StepView:
    """A step as a whole: what it chose, of which tokens, and who worked when."""

    kind: ClassVar[str] = "step"
    tip: dict[str, Any]  # the settings of the filter, with the rho of the step
    keeps: str  # of the rule: what it prefers, see opd_ray.tip.rule
    vocab_size: int
    rollouts: int
    tokens: int  # that the student wrote
    kept: int
    cuts: list[float] | None  # between quadrants, of normalised h and divergence
    # Tokens spread over the batch: "h" and "divergence", normalised (f4), "quadrant" (u1, 0 to 3),
    # "kept" (u1, 0 or 1).
    scatter: dict[str, str]
    # By position within the response: from (of each bucket), tokens, divergence, entropy, kept.
    by_position: dict[str, list[float]]
    by_turn: dict[str, list[float]]  # the same, of each turn from 0
    # [text, times kept, times written] of the tokens most often kept, and most often left out.
    often_kept: list[list[Any]]
    often_dropped: list[list[Any]]
    # With tip.share_of batch, by rule: the least score that is kept at a share of 0, 1, ... 100 %,
    # and which of the batch's tokens (from 0) is the last of this score to be kept; both packed, f4
    # and i4. A score is what the rule prefers the more the greater it is.
    edges: dict[str, list[str]]
    seconds: float  # of the step
    # [lane, begin, end]: seconds since the step began; and its lanes, [name, role].
    spans: list[list[Any]]
    lanes: list[list[str]]
    written: list[float]  # when each rollout was written, ascending, seconds since the step began


@dataclass(frozen=True)
class RolloutView:
    """One rollout, token by token; columns have a row for each shown token of the student's."""

    kind: ClassVar[str] = "rollout"
    rollout_id: str
    prompt_id: str
    sample: int
    source: str
    prompt: str  # as the student read it, special tokens too
    prompt_left_out: int  # characters in the middle that are not here
    finish_reason: str
    weights_version: int
    tokens: int  # of the response, those of others too
    written: int  # of these, by the student
    seed: str  # of rules that draw; a number of 63 bits
    first: int  # which of the batch's tokens (student's, from 0) its first one is
    texts: dict[str, str]  # of every token id below
    ids: str  # i4, of the shown tokens, from the first one on
    mask: str  # u1, likewise: 1 = written by the student
    turns: str | None  # i2, likewise; None: it is one turn
    weights: str  # f4, of the student's
    quadrants: str | None  # u1, 0 to 3
    # f4: scores as opd_ray.tip.scores names them; "normalised_entropy", "normalised_divergence";
    # "between_union_forward_kl" and "between_teacher_mass" (normalised by q05_q95); "score" of the
    # run's rule.
    columns: dict[str, str]
    # "student" and "teacher": [ids, logprobs] of the likeliest tokens, i4 and f4, row after row.
    likeliest: dict[str, list[str]]


@dataclass(frozen=True)
class AnswersView:
    """What the student answered to some held-out problems of a task."""

    kind: ClassVar[str] = "answers"
    task: str
    mode: str  # "greedy" or "sampled": the first sample
    # id, prompt, gold, response, extracted, correct, tokens, finish_reason, messages.
    problems: list[dict[str, Any]]


@dataclass(frozen=True)
class TeacherView:
    """The teacher's own held-out figures, named as the student's."""

    kind: ClassVar[str] = "teacher"
    figures: dict[str, float]


@dataclass(frozen=True)
class PartView:
    """A part of the run began: on which machines."""

    kind: ClassVar[str] = "part"
    # name, cpus, memory_bytes, gpus, gpu_memory_bytes.
    nodes: list[dict[str, Any]]


View = StepView | RolloutView | AnswersView | TeacherView | PartView
_VIEWS: Mapping[str, type[View]] = {
    one.kind: one for one in (StepView, RolloutView, AnswersView, TeacherView, PartView)
}


def write_view(rows: StepRows, step: int, view: View) -> None:
    """Add one view of a step.

    Raises:
        WriteError: it cannot be written.
    """
    rows.write(step, {"kind": view.kind, **asdict(view)})


def read_views(path: Path) -> Sequence[tuple[int, View]]:
    """(step, view) of every row, in the order of the file; nothing where there is no file.

    Raises:
        InputError: it cannot be read.
    """
    if not path.is_file():
        return []
    found: list[tuple[int, View]] = []
    with border(str(path), "delete it: the report then leaves tokens out", InputError):
        for line in whole_lines(path):
            row = json.loads(line)
            step, kind = row.pop("step"), row.pop("kind")
            found.append((step, made_of(_VIEWS[kind], row)))
    return found
