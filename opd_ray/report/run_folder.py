"""A run's folder, read: configuration, figures, parts, versions, and steps from close by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opd_ray.borders import border
from opd_ray.config.files import read_yaml
from opd_ray.config.load import config_from, to_values
from opd_ray.config.schema import Config, EvalSettings, EvalTask
from opd_ray.errors import ConfigError, InputError
from opd_ray.output.close_ups import AnswersView, PartView, TeacherView, View, read_views
from opd_ray.output.folder import LOCK_FILE, OutputFolder, lock_holder
from opd_ray.output.resume import flat
from opd_ray.output.sinks import read_jsonl

State = Literal["finished", "running", "stopped", "failed", "unknown"]
# A key of a task of the evaluation.
_TASK = re.compile(r"eval\.tasks\[\d+\]\.(.+)")
_TASK_DEFAULTS = {
    key.removeprefix("eval.tasks[0]."): value
    for key, value in flat(to_values(Config(eval=EvalSettings(tasks=[EvalTask()])))).items()
}
# Their other value says nothing of what was run.
_UNTOLD = ("run.output_dir", "run.resume", "run.date")


@dataclass(frozen=True)
class RunFolder:
    """What is in it; where a file is missing, nothing."""

    path: Path
    config: Mapping[str, Any]  # by full key, without the sections of study
    rows: Sequence[Mapping[str, float]]  # of metrics.jsonl, one a step
    history: Sequence[Mapping[str, Any]]
    versions: Mapping[str, Any]
    views: Sequence[tuple[int, View]]
    locked: bool  # whether a process holds it

    @classmethod
    def read(cls, path: Path, *, locked: bool | None = None) -> RunFolder:
        """Read the folder of a run, which may be going on.

        Args:
            path: of the folder.
            locked: what is known of its lock; None: it is tried.

        Raises:
            InputError: it is no run's folder, or one of its files cannot be read.
        """
        output = OutputFolder(path)
        if not output.config.is_file() or not output.metrics.is_file():
            raise InputError(
                f"{path}: not the folder of a run (it has no config.yaml and metrics.jsonl); give "
                "the run.output_dir of one that has begun"
            )
        versions: dict[str, Any] = {}
        if output.versions.is_file():
            with border(str(output.versions), "delete it", InputError):
                versions = json.loads(output.versions.read_text(encoding="utf-8"))
        return cls(
            path=path,
            config=told_keys(written_keys(output.config)),
            rows=read_jsonl(output.metrics),
            history=output.history.rows(),
            versions=versions,
            views=read_views(output.close_ups),
            locked=bool(lock_holder(path / LOCK_FILE)) if locked is None else locked,
        )

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def steps(self) -> list[Mapping[str, float]]:
        """The rows of steps that were taken."""
        return [row for row in self.rows if "train/loss" in row]

    @property
    def evaluations(self) -> list[Mapping[str, float]]:
        """The rows in which the student was measured."""
        return [row for row in self.rows if any(name.startswith("eval/") for name in row)]

    @property
    def teacher(self) -> Mapping[str, float]:
        """The teacher's own held-out figures, as far as they were measured."""
        found = [view.figures for _, view in self.views if isinstance(view, TeacherView)]
        return found[-1] if found else {}

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The machines of the last part."""
        found = [view.nodes for _, view in self.views if isinstance(view, PartView)]
        return found[-1] if found else []

    @property
    def answers(self) -> list[tuple[int, AnswersView]]:
        """To the held-out problems that are shown, with the steps taken by then."""
        return [(step, view) for step, view in self.views if isinstance(view, AnswersView)]

    @property
    def ending(self) -> tuple[State, str]:
        """How it ended, and what was said of it."""
        last = self.history[-1] if self.history else {}
        if last.get("finished") is not None:
            return "finished", f"all {last['finished']} steps are taken"
        if "stopped" in last:
            state: State = "failed" if last.get("failed") else "stopped"
            return state, f"after step {last['stopped']}: {last.get('why', '')}"
        taken = int(self.steps[-1]["step"]) if self.steps else 0
        if self.locked:
            return "running", f"{taken} steps are taken"
        return "unknown", f"it ended after step {taken} without a word: its process was killed"

    def changed_keys(self) -> list[tuple[str, Any, Any]]:
        """(key, value, default) of every key that is not at its default."""
        known = told_keys(flat(to_values(Config())))
        found = []
        for key in sorted({*self.config, *known}):
            # What is in a list has keys of its own.
            if key not in self.config and known[key] in ([], {}):
                continue
            of_task = _TASK.match(key)
            before = _TASK_DEFAULTS.get(of_task[1]) if of_task else known.get(key)
            if self.config.get(key) != before:
                found.append((key, self.config.get(key), before))
        return found


def written_keys(file: Path) -> dict[str, Any]:
    """All keys of a written configuration; of one with keys that are gone by now as they stand."""
    raw = read_yaml(file)
    try:
        return flat(to_values(config_from(raw, (), str(file))))
    except ConfigError:
        return flat(raw)


def told_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say what was run."""
    return {k: v for k, v in keys.items() if k not in _UNTOLD and not k.startswith("study.")}
