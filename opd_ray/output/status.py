"""How a run stands, seen from outside: at work, finished, stopped or dead."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from opd_ray.config.files import read_yaml
from opd_ray.errors import OutputFolderError
from opd_ray.output.activity import Activity, in_words, read_activity
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.output.folder import LOCK_FILE, OutputFolder, lock_holder
from opd_ray.output.progress import is_told
from opd_ray.output.sinks import has_figures, read_jsonl

# A run tells of itself every few seconds while it waits for its actors.
_SILENT_SECONDS = 60.0


class Standing(StrEnum):
    """What has become of a run."""

    loading = "its models are loading"
    at_work = "at work"
    finished = "finished"
    stopped = "stopped"
    failed = "failed"
    dead = "dead: its process is gone and has not said why"


@dataclass(frozen=True)
class Status:
    """How the run in a folder stands."""

    folder: Path
    standing: Standing
    activity: Activity | None  # what it does, or did when it died; None: it is over, or loading
    why: str  # it ended before its end; "" where it did not, or nobody knows
    total: int  # steps in all
    rows: list[dict[str, float]]  # of metrics.jsonl
    checkpoint: str | None  # the name of the newest whole one
    holder: str = ""  # who is at work
    cells: tuple[int, int] | None = None  # of a study: those finished, and all

    @property
    def well(self) -> bool:
        """Whether it is at work or has come to its end."""
        return self.standing in (Standing.loading, Standing.at_work, Standing.finished)

    def lines(self) -> Iterator[str]:
        """What a person wants to know, most wanted first."""
        activity = self.activity
        yield f"{self.folder}: {self.standing}, {self._how_far()}"
        if self.why:
            yield f"why: {self.why}"
        if activity and self.standing is Standing.at_work:
            yield f"now: {activity.doing}, for {in_words(time.time() - activity.since)}"
        elif activity:
            ago = in_words(time.time() - activity.updated)
            yield f"last sign of life: {activity.doing}, {ago} ago"
        if pace := self._pace():
            yield f"rate: {pace}"
        if held_out := self._held_out():
            yield held_out
        if self.checkpoint:
            yield f"newest checkpoint: {self.checkpoint}"
        if self.holder:
            yield f"{self.holder}{self._silence()}"
        elif not self.well:
            command = "train" if self.cells is None else "study"
            yield f"to go on: opd-ray {command} --config {self.folder / 'config.yaml'}"

    def _how_far(self) -> str:
        """Steps taken of how many; in a study of the cell that is at work, else cells."""
        activity = self.activity
        if self.cells is not None and activity is None:
            done, cells = self.cells
            return f"{done} of {cells} cells"
        steps = [int(row["step"]) for row in self.rows if "train/loss" in row]
        step = activity.step if activity else max(steps, default=0)
        cell = f"{activity.cell}, " if activity and activity.cell else ""
        return f"{cell}{step} of {self.total} steps"

    def _pace(self) -> str:
        """Time and tokens of a step, and what is left if it is at work."""
        steps = [row for row in self.rows if "train/loss" in row]
        if not steps:
            return ""
        last = steps[-1]
        parts = [f"{last['seconds/step']:.2f} s for step {int(last['step'])}"]
        left = self.activity.seconds_left if self.activity else None
        if self.standing is Standing.at_work and left is not None:
            parts.append(f"about {in_words(left)} left")
        parts += [
            f"{last['tokens_per_second/step']:.0f} tokens/s",
            f"loss {last['train/loss']:.4f}",
            f"kept {last['tip/kept_fraction']:.2f}",
        ]
        return ", ".join(parts)

    def _held_out(self) -> str:
        """The figures of the newest evaluation."""
        evaluations = [row for row in self.rows if has_figures(row)]
        if not evaluations:
            return ""
        last = evaluations[-1]
        figures = [
            f"{name.removeprefix('eval/')} {value:.4f}"
            for name, value in last.items()
            if name.startswith("eval/") and is_told(name) and not math.isnan(value)
        ]
        return f"evaluation at step {int(last['step'])}: {'  '.join(figures)}"

    def _silence(self) -> str:
        """How long nothing has been heard of it, where that is long."""
        if self.activity is None or self.standing is not Standing.at_work:
            return ""
        silent = time.time() - self.activity.updated
        return f"; last sign of life {in_words(silent)} ago" if silent > _SILENT_SECONDS else ""


def read_status(folder: Path) -> Status:
    """How the run in ``folder`` stands.

    Raises:
        OutputFolderError: there is no run.
        RunError: what it has written cannot be read.
    """
    output = OutputFolder(folder)
    if not output.config.is_file() and not (folder / LOCK_FILE).is_file():
        raise OutputFolderError(
            f"{folder} is no run's folder: it has neither config.yaml nor {LOCK_FILE}; give the "
            "run.output_dir of a run"
        )
    values = read_yaml(output.config) if output.config.is_file() else {}
    holder = lock_holder(folder / LOCK_FILE)
    activity = read_activity(output.status)
    if holder and activity and f"process {activity.pid} on {activity.host}," not in holder:
        activity = None  # of a process before this one, which died
    history = output.history.rows()
    last = history[-1] if history else {}
    newest = CheckpointStore(output.checkpoints, keep=1).newest()
    figures = folder / activity.figures if activity else output.metrics
    return Status(
        folder=folder,
        standing=_standing(activity, holder, last),
        activity=activity,
        why="" if holder or activity else str(last.get("why", "")),
        total=activity.total if activity else int(values.get("run", {}).get("steps", 0)),
        rows=read_jsonl(figures) if figures.is_file() else [],
        checkpoint=newest[0].name if newest else None,
        holder=holder,
        cells=_cells(history),
    )


def _cells(history: list[dict[str, Any]]) -> tuple[int, int] | None:
    """Of a study: cells that are finished, as the last line says, and all; None: it is a run."""
    started = next((row for row in reversed(history) if "cells" in row), None)
    if started is None:
        return None
    known = (history[-1].get(key) for key in ("finished", "stopped"))
    finished = next((count for count in known if count is not None), started["finished_cells"])
    return int(finished), int(started["cells"])


def _standing(activity: Activity | None, holder: str, last: dict[str, Any]) -> Standing:
    """Of a run that does this, at whose work is ``holder`` ("": nobody).

    ``last``: the last line of its history, {} where there is none.
    """
    if holder:
        return Standing.at_work if activity else Standing.loading
    if activity is None and "finished" in last:
        return Standing.finished
    if activity is None and "stopped" in last:
        return Standing.failed if last.get("failed") else Standing.stopped
    return Standing.dead
