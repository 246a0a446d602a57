"""What a finished cell leaves, and where: the bookkeeping that makes a study resumable.

Layout below the study's folder: ``start/`` (the trainers' state before any step),
``cells/ARM/seed_N/metrics.jsonl`` and, written last, ``result.json``; ``step_0/seed_N.json`` (the
evaluation before the first step, which all arms of a seed share).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opd_ray.config.schema import RunSettings
from opd_ray.errors import RunError
from opd_ray.output.sinks import read_jsonl
from opd_ray.study.cells import Cell
from opd_ray.tip import TipSettings
from opd_ray.typed_json import made_of
from opd_ray.whole_file import write_whole


class StudyError(RunError):
    """A study's folder holds results that do not belong to it, or cannot be read."""


@dataclass(frozen=True)
class CellResult:
    """The account of one finished cell."""

    arm: str
    seed: int
    tip: dict[str, Any]  # the whole section of the configuration
    step_0: dict[str, float]  # evaluation before the first step
    final: dict[str, float]  # evaluation after the last step
    tokens_written: int
    tokens_trained: int
    step_seconds: float  # wall time of all training steps
    seconds: float  # wall time of the cell, evaluations included
    overlaps: dict[str, float]  # rule -> Jaccard overlap with the arm's own, mean over the steps
    # How it went, as far as arms differ in that; keys that were not kept yet had their default.
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """Name of the arm's rule."""
        return str(self.tip["rule"])

    @property
    def rho(self) -> float:
        """Share of the tokens that the arm keeps; 1 for the rule ``all``."""
        return 1.0 if self.rule == "all" else float(self.tip["rho"])


class StudyFolder:
    """Paths and results of one study."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.start = self.path / "start"

    def cell(self, arm: str, seed: int) -> Path:
        """The folder of one cell."""
        return self.path / "cells" / arm / f"seed_{seed}"

    def metrics(self, arm: str, seed: int) -> Path:
        """The numbers of every step of one cell."""
        return self.cell(arm, seed) / "metrics.jsonl"

    def step_0(self, seed: int) -> Path:
        """The evaluation before the first step."""
        return self.path / "step_0" / f"seed_{seed}.json"

    def result(self, cell: Cell) -> CellResult | None:
        """The account of a cell, None if it is not finished.

        Raises:
            StudyError: it was made with other settings of its arm, or cannot be read.
        """
        path = self.cell(cell.arm, cell.seed) / "result.json"
        if not path.is_file():
            return None
        try:
            result = made_of(CellResult, json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise StudyError(
                f"{path} cannot be read ({error}): delete it to run the cell anew"
            ) from error
        made = _arm_keys(TipSettings(), RunSettings()) | _named(result.tip, result.run)
        wanted = _arm_keys(cell.config.tip, cell.config.run)
        if changed := [key for key, value in wanted.items() if made[key] != value]:
            raise StudyError(
                f"{path} was made with another {', '.join(changed)}: give the arm another name, or "
                f"delete {path.parent}"
            )
        return result

    def results(self, cells: Sequence[Cell]) -> list[CellResult]:
        """The accounts of all finished cells, in the order of ``cells``."""
        found = (self.result(cell) for cell in cells)
        return [result for result in found if result is not None]

    def finish(self, cell: Cell, seconds: float) -> None:
        """Add up a cell's metrics and write its account, whole or not at all."""
        result = cell_result(cell, read_jsonl(self.metrics(cell.arm, cell.seed)), seconds)
        path = self.cell(cell.arm, cell.seed) / "result.json"
        write_whole(path, json.dumps(asdict(result), indent=1))


def cell_result(cell: Cell, rows: Sequence[dict[str, float]], seconds: float) -> CellResult:
    """The account of a cell from the rows of its metrics, the first and the last evaluated."""
    evaluations = [_evaluation(row) for row in rows if "eval/kl" in row]
    steps = [row for row in rows if "train/loss" in row]
    prefix = "tip/overlap/"
    overlaps: dict[str, list[float]] = {}
    for row in steps:
        for name, value in row.items():
            if name.startswith(prefix):
                overlaps.setdefault(name.removeprefix(prefix), []).append(value)
    return CellResult(
        arm=cell.arm,
        seed=cell.seed,
        tip=asdict(cell.config.tip),
        run=_run_keys(cell.config.run),
        step_0=evaluations[0],
        final=evaluations[-1],
        tokens_written=int(sum(row["rollout/tokens"] for row in steps)),
        tokens_trained=int(sum(row["train/kept_tokens"] for row in steps)),
        step_seconds=sum(row["seconds/step"] for row in steps),
        seconds=seconds,
        overlaps={name: sum(values) / len(values) for name, values in overlaps.items()},
    )


def _arm_keys(tip: TipSettings, run: RunSettings) -> dict[str, Any]:
    """All that arms may differ in."""
    return _named(asdict(tip), _run_keys(run))


def _run_keys(run: RunSettings) -> dict[str, Any]:
    return {"overlap": run.overlap, "lag": run.lag}


def _named(tip: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    sections = {"tip": tip, "run": run}
    return {
        f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()
    }


def _evaluation(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("eval/")}
