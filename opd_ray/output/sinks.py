"""Where a run's numbers go: JSONL and TensorBoard; trackers.py has those that are asked for."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from opd_ray.appended_file import AppendedFile, whole_lines
from opd_ray.borders import border
from opd_ray.errors import RunError
from opd_ray.output.step_rows import StepRows

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class Sink(Protocol):
    """One destination of the numbers."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def back_to(self, step: int) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """One JSON object a line: ``{"step": 3, "loss": 0.41, ...}``; null is no finite number."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self._rows = StepRows(path, resume_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._rows.write(step, row)

    def back_to(self, step: int) -> None:
        """Drop the rows of all steps after this one: they are written again."""
        self._rows.back_to(step)

    def close(self) -> None:
        self._rows.close()


class TensorBoardSink:
    """Scalars in a TensorBoard event file; a resumed run hides the rows it writes again.

    Written here and now: TensorBoard's own writer has a thread, in which a full disk is a traceback
    and what it holds back is lost.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        self._file = AppendedFile(folder / _event_file(folder), lines=False)
        self._writer = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self.back_to(resume_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [
            self._summary.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._add(step=step, summary=self._summary.Summary(value=scalars))

    def back_to(self, step: int) -> None:
        """Hide the rows of all steps after this one: they are written again."""
        begun = self._event.SessionLog(status=self._event.SessionLog.START)
        self._add(step=step + 1, session_log=begun)

    def close(self) -> None:
        self._file.close()

    def _add(self, **parts: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **parts)
        self._writer.write(event.SerializeToString())


def _event_file(folder: Path) -> str:
    """A name that comes after those in ``folder``, whatever has become of the clock meanwhile.

    TensorBoard reads files in the order of their names, and a later one hides steps of earlier.
    """
    numbers = [int(found[1]) for path in folder.glob("*") if (found := _EVENTS.match(path.name))]
    number = max(int(time.time()), *(known + 1 for known in numbers), 0)
    return f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}.0"


@dataclass(frozen=True)
class Metrics:
    """All sinks as one."""

    sinks: list[Sink]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of one step (numbers only; names are ``group/name``)."""
        for sink in self.sinks:
            sink.write(step, values)

    def back_to(self, step: int) -> None:
        """Go back: what was written of steps after this one is replaced by what is written now."""
        for sink in self.sinks:
            sink.back_to(step)

    def close(self) -> None:
        """Flush and close every sink."""
        for sink in self.sinks:
            sink.close()


def read_jsonl(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; rows of one step (training and evaluation) are merged.

    What was no finite number is NaN.

    Raises:
        RunError: it cannot be read.
    """
    rows: dict[int, dict[str, float]] = {}
    with border(str(path), "mend or delete it", RunError):
        for line in whole_lines(path):
            row = json.loads(line)
            values = {name: math.nan if value is None else value for name, value in row.items()}
            rows.setdefault(row["step"], {}).update(values)
        return [rows[step] for step in sorted(rows)]


def has_evaluation(path: Path, step: int) -> bool:
    """Whether a metrics file has the figures of an evaluation at this step."""
    return any(row["step"] == step and "seconds/eval" in row for row in read_jsonl(path))


def has_figures(row: dict[str, float]) -> bool:
    """Whether a row has held-out figures."""
    return any(name.startswith("eval/") for name in row)
