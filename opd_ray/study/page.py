"""The page of a study: its arms side by side, each the mean of its seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from opd_ray.borders import border
from opd_ray.config.load import load_config
from opd_ray.errors import InputError
from opd_ray.output.folder import OutputFolder
from opd_ray.output.resume import flat
from opd_ray.output.sinks import read_jsonl
from opd_ray.report.page import write_compared
from opd_ray.report.run_folder import RunFolder, told_keys, written_keys
from opd_ray.study.report import ArmFigures, arms_of, t_interval
from opd_ray.study.results import CellResult, StudyFolder
from opd_ray.typed_json import made_of

# The page draws this many standard errors to either side.
_DRAWN_ERRORS = 1.96
_SPREAD = "over seeds (differences paired by seed are in results.md)"

Row = Mapping[str, float]


def is_study(path: Path) -> bool:
    """Whether a folder is that of a study."""
    return (path / "cells").is_dir()


def write_study_page(path: Path, page: Path) -> None:
    """Write the page of the cells that are finished, whose models need not be here.

    Raises:
        InputError: none is finished, or a file of theirs cannot be read.
        WriteError: the page cannot be written; one that is there stays.
    """
    folder = StudyFolder(path)
    results = _finished(folder)
    if not results:
        raise InputError(f"{path}: no cell of this study is finished; run opd-ray study first")
    keys = told_keys(written_keys(OutputFolder(path).config))
    arms = [_as_run(folder, arm, keys) for arm in arms_of(results)]
    write_compared(arms, page, path.resolve().name, _SPREAD)


def _finished(folder: StudyFolder) -> list[CellResult]:
    """Their accounts, arms in the order in which the configuration has them."""
    config = load_config(OutputFolder(folder.path).config)
    names = [arm.name for arm in config.study.arms]
    results = []
    for path in folder.path.glob("cells/*/seed_*/result.json"):
        with border(str(path), "delete it to run the cell anew", InputError):
            results.append(made_of(CellResult, json.loads(path.read_text(encoding="utf-8"))))
    known = {name: place for place, name in enumerate(names)}
    return sorted(results, key=lambda one: (known.get(one.arm, len(names)), one.arm, one.seed))


def _as_run(folder: StudyFolder, arm: ArmFigures, keys: Mapping[str, Any]) -> RunFolder:
    """An arm as if its seeds had been one run."""
    own = next(iter(arm.results.values()))
    rows = mean_rows([read_jsonl(folder.metrics(arm.arm, seed)) for seed in arm.results])
    return RunFolder(
        path=folder.path / "cells" / arm.arm,
        config={**keys, **flat({"tip": own.tip, "run": own.run}), "run.seed": [*arm.results]},
        rows=rows,
        history=[{"finished": keys.get("run.steps")}],
        versions={},
        views=(),
        locked=False,
    )


def mean_rows(histories: Sequence[Sequence[Row]]) -> list[dict[str, float]]:
    """The mean over seeds of every figure that all of them have at a step.

    Held-out figures get the half width of a 95 % t-interval over the seeds, as the standard error
    that draws it; what stood there was an error over problems.
    """
    by_step = [{int(row["step"]): row for row in rows} for rows in histories]
    found = []
    for step in sorted(set.intersection(*(set(rows) for rows in by_step))):
        of_seeds = [rows[step] for rows in by_step]
        mean: dict[str, float] = {}
        for name in of_seeds[0]:
            if name.endswith("_se") or not all(name in row for row in of_seeds):
                continue
            values = [row[name] for row in of_seeds]
            mean[name] = fmean(values)
            if name.startswith("eval/") and len(values) > 1:
                mean[f"{name}_se"] = t_interval(values).half_width / _DRAWN_ERRORS
        found.append(mean)
    return found
