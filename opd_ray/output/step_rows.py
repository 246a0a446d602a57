"""A file with a JSON object a line, each of a step of the run; a run that goes back drops some."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd_ray.appended_file import AppendedFile, whole_lines
from opd_ray.borders import border
from opd_ray.errors import RunError
from opd_ray.whole_file import write_whole


class StepRows:
    """Rows are added in full or not at all; those of steps after ``resume_step`` are dropped first:
    a resumed run writes them again.

    Raises:
        RunError: what is there cannot be read.
        WriteError: it cannot be written.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        self._open(resume_step)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Add ``{"step": step, **row}``; no value may be NaN or infinite."""
        self._file.write(f"{json.dumps({'step': step, **row}, allow_nan=False)}\n".encode())

    def back_to(self, step: int) -> None:
        """Drop the rows of all steps after this one: they are written again."""
        self._file.close()
        self._open(step)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self, step: int) -> None:
        path = self._path
        if path.exists():
            with border(str(path), "mend or delete it: a run can go on without it", RunError):
                kept = [
                    f"{line}\n" for line in whole_lines(path) if json.loads(line)["step"] <= step
                ]
            write_whole(path, "".join(kept))
        self._file = AppendedFile(path, lines=True)
