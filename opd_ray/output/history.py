"""Which step of a run was taken with what: one line of JSON a part, in ``history.jsonl``.

A run that was stopped and goes on has several parts. The steps after ``from_step`` of a line ran
with its configuration, until a line with a later one; a line with an earlier one replaces what
came after it, as where a run goes on from an older checkpoint.

A study counts cells in place of steps, and has no configuration here: none but its own folder's.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opd_ray import __version__
from opd_ray.appended_file import AppendedFile, whole_lines
from opd_ray.borders import border
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.errors import OutputFolderError
from opd_ray.typed_json import check, made_of


@dataclass(frozen=True)
class History:
    """The file of one run's folder."""

    path: Path

    def add_part(
        self,
        from_step: int,
        prompts: PromptsIdentity,
        changed: list[str],
        config: dict[str, Any],
    ) -> None:
        """A part of the run begins after ``from_step``; ``changed`` says against the one before."""
        self._add(
            {
                "from_step": from_step,
                "started": time.strftime("%Y-%m-%d %H:%M:%S"),
                "opd_ray": __version__,
                "prompts": asdict(prompts),
                "changed": changed,
                "config": config,
            }
        )

    def add_study(self, cells: int, finished: int) -> None:
        """A study of so many cells goes on, of which some are finished; so counts what follows."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        started = {"started": now, "opd_ray": __version__}
        self._add({"cells": cells, "finished_cells": finished, **started})

    def finish(self, step: int) -> None:
        """The run is over after ``step``, its report and export are written."""
        self._add({"finished": step})

    def stop(self, step: int, why: str, *, failed: bool) -> None:
        """The run has ended after ``step``, before its last one: it was asked to, or failed."""
        self._add({"stopped": step, "failed": failed, "why": why})

    @property
    def finished(self) -> int | None:
        """The step at which the last part of the run was finished; None if it was not."""
        rows = self.rows()
        return rows[-1].get("finished") if rows else None

    @property
    def prompts(self) -> PromptsIdentity | None:
        """The prompts of the last part; None where there is none."""
        known = [row["prompts"] for row in self.rows() if "prompts" in row]
        with self._reading():
            return made_of(PromptsIdentity, known[-1]) if known else None

    def rows(self) -> list[dict[str, Any]]:
        """All lines; none where there is no file.

        Raises:
            OutputFolderError: the file cannot be read.
        """
        if not self.path.is_file():
            return []
        with self._reading():
            rows = [json.loads(line) for line in whole_lines(self.path)]
            check(rows, list[dict[str, Any]], "a line")
            check([row.get("finished") for row in rows], list[int | None], "finished")
        return rows

    def _reading(self) -> AbstractContextManager[None]:
        remedy = "delete it: a run can go on without it"
        return border(str(self.path), remedy, OutputFolderError)

    def _add(self, row: dict[str, Any]) -> None:
        with closing(AppendedFile(self.path, lines=True)) as file:
            file.write(f"{json.dumps(row)}\n".encode())
