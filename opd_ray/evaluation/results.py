"""The results of an evaluation folder: a table for people, JSON and TensorBoard for programs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from opd_ray.borders import writing
from opd_ray.evaluation.figures import ACTING, figures
from opd_ray.evaluation.folder import EvaluationFolder
from opd_ray.output.sinks import TensorBoardSink
from opd_ray.whole_file import write_whole

HEAD = (
    "task",
    "problems",
    "responses",
    "correct %",
    "pass@n %",
    "maj@n %",
    "tokens",
    "tokens, 90 %",
    "cut off %",
)

_LEGEND = """Correct: the mean over problems of the share of right responses (mean@n; greedy: one
response), ± standard error over problems. pass@n: at least one of n responses is right. maj@n: the
most frequent answer is right. Tokens: mean length of a response, and the 90th percentile. Cut off:
ended by a limit."""

_ACTING = """What environments say of rollouts, and what became of their calls: means over problems
± standard error over problems."""


@dataclass(frozen=True)
class TaskResult:
    """One way of asking one task, as far as it has come."""

    name: str
    problems: int
    answered: int
    samples: int  # 0: greedy
    settings: dict[str, Any]  # of the way of asking
    figures: dict[str, float]  # by their full names; empty until every problem is answered

    def cells(self) -> tuple[str, ...]:
        """One row of the table, below ``HEAD``."""
        if not self.figures:
            return (self.name, str(self.problems), self._asked, f"{self.answered} answered so far")
        at = f"@{self.samples}" if self.samples else ""
        return (
            self.name,
            str(self.problems),
            self._asked,
            self._share(f"mean{at}" if self.samples else "accuracy"),
            self._share(f"pass{at}") if self.samples else "",
            self._share(f"maj{at}") if self.samples else "",
            f"{self._value(f'tokens{at}'):.0f}",
            f"{self._value(f'tokens_q90{at}'):.0f}",
            f"{100 * self._value(f'truncated{at}'):.1f}",
        )

    def acting(self) -> Iterator[str]:
        """A line for each figure of its environments and calls."""
        at = f"@{self.samples}" if self.samples else ""
        own = f"eval/{self.name}/"
        for key, value in self.figures.items():
            name = key.removeprefix(own)
            error = self.figures.get(f"{key}_se")
            if name.startswith(ACTING) and error is not None:
                spread = "" if math.isnan(error) else f" ± {error:.3g}"
                yield f"- {self.name}, {self._asked}, {name.removesuffix(at)}: {value:.4g}{spread}"

    @property
    def _asked(self) -> str:
        if not self.samples:
            return "greedy"
        return (
            f"n = {self.samples}, T = {self.settings['temperature']:g}, "
            f"top-p = {self.settings['top_p']:g}"
        )

    def _value(self, figure: str) -> float:
        return self.figures[f"eval/{self.name}/{figure}"]

    def _share(self, figure: str) -> str:
        text = f"{100 * self._value(figure):.1f}"
        error = self.figures.get(f"eval/{self.name}/{figure}_se", math.nan)
        return text if math.isnan(error) else f"{text} ± {100 * error:.1f}"


def read_results(folder: EvaluationFolder) -> list[TaskResult]:
    """Everything that was asked in a folder, from its records alone."""
    found = []
    for name, task in folder.settings.get("tasks", {}).items():
        for mode in ("greedy", "sampled"):
            if mode not in task:
                continue
            # By id: problems finish in any order, and sums of floats should not depend on it.
            records = sorted(folder.records(name, mode).values(), key=lambda record: record.id)
            samples = task[mode].get("samples", 0)
            whole = len(records) == task["problems"]
            found.append(
                TaskResult(
                    name=name,
                    problems=task["problems"],
                    answered=len(records),
                    samples=samples,
                    settings=task[mode],
                    figures=figures(name, samples, records) if whole else {},
                )
            )
    return found


def render(results: Sequence[TaskResult], model: str) -> str:
    """The table as Markdown, aligned so that it can be read as it is."""
    filled = (result.cells() for result in results)
    rows = [HEAD, *((*cells, *[""] * (len(HEAD) - len(cells))) for cells in filled)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    acting = [line for result in results for line in result.acting()]
    more = "\n".join(["", _ACTING, "", *acting, ""]) if acting else ""
    return f"# Evaluation of {model}\n\n" + "\n".join(lines) + f"\n\n{_LEGEND}\n{more}"


def write_results(
    folder: EvaluationFolder, results: Sequence[TaskResult], model: str, versions: dict[str, str]
) -> None:
    """``results.md``, ``results.json`` and ``tensorboard`` of a folder, in place of older ones."""
    found = {name: value for result in results for name, value in result.figures.items()}
    write_whole(folder.results_md, render(results, model))
    content = {
        "model": model,
        "settings": folder.settings,
        # JSON has no NaN: the error of a single problem is null.
        "figures": {name: None if math.isnan(v) else v for name, v in found.items()},
        "versions": versions,
    }
    write_whole(folder.results_json, json.dumps(content, indent=1) + "\n")
    if folder.tensorboard.exists():
        with writing(folder.tensorboard):
            shutil.rmtree(folder.tensorboard)
    sink = TensorBoardSink(folder.tensorboard, 0)
    sink.write(0, found)
    sink.close()
