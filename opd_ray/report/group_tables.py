"""Tables of what a run has several of: sources of prompts, teachers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Column:
    """One figure of each group."""

    figure: str  # the last part of its name in metrics.jsonl
    label: str
    unit: str  # "share", or as it is written behind the number
    of: Callable[[Sequence[float]], float] = fmean
    moves: bool = False  # whether its beginning is shown too


_OF_SOURCES = (
    Column("rollouts", "rollouts", "", sum),
    Column("tokens", "tokens written", "", sum),
    Column("kept_share", "kept", "share"),
    Column("truncated", "cut off", "share"),
    Column("entropy_mean", "entropy", "nats", moves=True),
    Column("reverse_kl_mean", "KL(student ‖ teacher)", "nats", moves=True),
    Column("forward_kl_mean", "KL(teacher ‖ student)", "nats", moves=True),
)
_OF_TEACHERS = (
    Column("tokens", "tokens read", "", sum),
    Column("tokens_per_second", "a second", ""),
    Column("batch_fill", "batches filled", "share"),
    Column("queue_tokens", "longest queue", "tokens", max),
    Column("wait_mean_seconds", "a rollout waits", "s"),
    Column("wait_max_seconds", "at most", "s", max),
)


def group_tables(steps: Rows) -> list[dict[str, Any]]:
    """A table for whatever the steps have several of.

    Counts are of the whole run, other figures means of the last quarter of the steps; of those that
    move the first quarter stands before.
    """
    tables = (
        ("sources of prompts", "training", "source", _OF_SOURCES),
        ("teachers", "time", "teacher", _OF_TEACHERS),
    )
    found = []
    for title, section, prefix, columns in tables:
        names = _names(steps, prefix, columns)
        if names:
            found.append(
                {
                    "title": title,
                    "section": section,
                    "columns": [[column.label, column.unit] for column in columns],
                    "rows": [[name, *_cells(steps, f"{prefix}/{name}", columns)] for name in names],
                }
            )
    return found


def _names(steps: Rows, prefix: str, columns: Sequence[Column]) -> list[str]:
    """Of the groups, which may have any character in them."""
    figures = "|".join(column.figure for column in columns)
    pattern = re.compile(rf"{prefix}/(?!replica/)(.+)/(?:{figures})")
    keys = {key for row in steps for key in row}
    return sorted({match[1] for key in keys if (match := pattern.fullmatch(key))})


def _cells(steps: Rows, prefix: str, columns: Sequence[Column]) -> list[list[float | None]]:
    """[at the beginning, at the end] of each column; None where it is not shown or missing."""
    cells = []
    for column in columns:
        values = [row[key] for row in steps if (key := f"{prefix}/{column.figure}") in row]
        if column.of is not fmean:
            cells.append([None, column.of(values) if values else None])
            continue
        quarter = -(-len(values) // 4)
        first = fmean(values[:quarter]) if values and column.moves else None
        cells.append([first, fmean(values[-quarter:]) if values else None])
    return cells
