"""Where a run's numbers go: JSONL and TensorBoard always, Weights & Biases when asked for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from opd_ray.borders import border
from opd_ray.errors import RunError
from opd_ray.whole_file import write_whole


class Sink(Protocol):
    """One destination of the numbers."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """One JSON object a line: ``{"step": 3, "loss": 0.41, ...}``; null is no finite number.

    Rows of steps after ``resume_step`` are dropped first: a resumed run writes them again.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        if path.exists():
            with border(str(path), "mend or delete it: a run can go on without it", RunError):
                kept = [
                    line
                    for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
                    if line.endswith("\n") and json.loads(line)["step"] <= resume_step
                ]
            write_whole(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars in a TensorBoard event file; a resumed run hides the rows it writes again."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases; the package is imported here only.

    A run that goes on goes on in the same run there. What W&B has of steps that are taken again
    stays as it is: it accepts no earlier step.

    Args:
        project: of W&B.
        folder: where its files go, and ``known``, which keeps the run's id.
        config: the run's configuration, as nested values.
        resume_step: 0 begins a new run there.
        known: the file that keeps project and id.
    """

    def __init__(
        self, project: str, folder: Path, config: dict[str, Any], resume_step: int, known: Path
    ) -> None:
        import wandb

        run_id = None
        if resume_step > 0 and known.is_file():
            kept = json.loads(known.read_text(encoding="utf-8"))
            run_id = kept["id"] if kept["project"] == project else None
        again: dict[str, Any] = {"id": run_id, "resume": "allow"} if run_id else {}
        self._run = wandb.init(project=project, dir=str(folder), config=config, **again)
        if run_id:
            self._run.config.update(config, allow_val_change=True)
        write_whole(known, json.dumps({"project": project, "id": self._run.id}))

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


@dataclass(frozen=True)
class Metrics:
    """All sinks as one."""

    sinks: list[Sink]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of one step (numbers only; names are ``group/name``)."""
        for sink in self.sinks:
            sink.write(step, values)

    def close(self) -> None:
        """Flush and close every sink."""
        for sink in self.sinks:
            sink.close()


def read_jsonl(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; rows of one step (training and evaluation) are merged.

    What was no finite number is NaN.
    """
    rows: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        values = {name: math.nan if value is None else value for name, value in row.items()}
        rows.setdefault(row["step"], {}).update(values)
    return [rows[step] for step in sorted(rows)]
