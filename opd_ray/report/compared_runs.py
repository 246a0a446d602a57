"""Several runs side by side: curves, final figures with intervals, and the keys that differ."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from opd_ray.report.alarms import alarms
from opd_ray.report.charts import charts
from opd_ray.report.page_data import columns, facts, held_out, progress, thinned
from opd_ray.report.run_folder import RunFolder

# Of facts that are written by what they are.
_UNITS = {"share": "share", "duration": "s"}
OVER_PROBLEMS = "over problems"


def compared_data(
    runs: Sequence[RunFolder], title: str | None = None, spread: str = OVER_PROBLEMS
) -> dict[str, Any]:
    """What the page of several runs shows; see :func:`opd_ray.report.page.write_compared`."""
    names = _names(runs)
    there = {name for run in runs for row in run.rows for name in row}
    teacher: dict[str, float] = {}
    for run in runs:
        teacher |= run.teacher
    drawn: list[dict[str, Any]] = [
        {
            "title": chart.title if len(chart.curves) == 1 else f"{chart.title}: {curve.label}",
            "unit": chart.unit,
            "name": curve.name,
            "error": curve.error,
            "lines": chart.lines if chart.group == "held-out" else [],
            "log": chart.log,
        }
        for chart in charts(there, {}, teacher)
        for curve in chart.curves
    ]
    wanted = [name for chart in drawn for name in (chart["name"], chart["error"]) if name]
    return {
        "kind": "compare",
        "title": title or " · ".join(names),
        "spread": spread,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "runs": [_run(name, run, wanted) for name, run in zip(names, runs, strict=True)],
        "charts": drawn,
        "figures": _figures(runs),
        "keys": _differences(runs),
    }


def _run(name: str, run: RunFolder, wanted: Sequence[str]) -> dict[str, Any]:
    state, _ = run.ending
    rows = thinned(run.rows)
    reached = progress(run)
    ends = [reached[int(row["step"])] for row in rows]
    return {
        "name": name,
        "state": state,
        "taken": int(run.steps[-1]["step"]) if run.steps else 0,
        "steps": run.config.get("run.steps"),
        "alarms": [asdict(one) for one in alarms(run.config, run.steps, run.evaluations)],
        "rows": {
            **columns(rows, list(dict.fromkeys(wanted))),
            "kept": [kept for kept, _ in ends],
            "seconds": [seconds for _, seconds in ends],
        },
    }


def _figures(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """[value, standard error] of every run: held-out figures at its end, then of the run."""
    ends = [{row["name"]: row["after"] for row in held_out(run)} for run in runs]
    whole = [
        {f"{label}, {_UNITS.get(unit, unit)}": [value, None] for label, value, unit in facts(run)}
        for run in runs
    ]
    found = []
    for tables in (ends, whole):
        for name in dict.fromkeys(name for table in tables for name in table):
            values = [table.get(name, [None, None]) for table in tables]
            found.append({"name": name, "values": values})
    return found


def _differences(runs: Sequence[RunFolder]) -> list[list[Any]]:
    """[key, value of each run] of every key in which they differ."""
    keys = sorted({key for run in runs for key in run.config})
    found = [[key, *(run.config.get(key) for run in runs)] for key in keys]
    return [row for row in found if any(value != row[1] for value in row[2:])]


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """The folders' names, with those above them where two are the same."""
    names = [run.name for run in runs]
    again = {name for name, count in Counter(names).items() if count > 1}
    return [
        f"{run.path.resolve().parent.name}/{name}" if name in again else name
        for name, run in zip(names, runs, strict=True)
    ]
