"""Trackers of experiments, when asked for: Weights & Biases, MLflow, Trackio.

Each package is imported here only, when its key is set. A run that goes on goes on in its run
there, whose id a file of its folder keeps. What a tracker has of steps that are taken again stays:
none of them forgets a step.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.config.schema import RunSettings
from opd_ray.errors import RunError
from opd_ray.output.sinks import Sink
from opd_ray.whole_file import write_whole

# What MLflow does not take in a name.
_NOT_MLFLOW = re.compile(r"[^\w./: -]")


def tracker_sinks(
    run: RunSettings, folder: Path, config: dict[str, Any], resume_step: int
) -> Iterator[Sink]:
    """Those that the section run asks for.

    Args:
        run: the section.
        folder: the run's; files that keep ids lie there.
        config: the run's configuration, as nested values.
        resume_step: 0 begins new runs there.

    Raises:
        RunError: a tracker takes no run; or the file with its id cannot be read.
    """
    for name, project, sink in (
        ("wandb", run.wandb_project, WandbSink),
        ("mlflow", run.mlflow_experiment, MlflowSink),
        ("trackio", run.trackio_project, TrackioSink),
    ):
        if project:
            yield sink(project, folder, config, resume_step, folder / f"{name}.json")


class WandbSink:
    """Weights & Biases; the last argument is the file that keeps project and id."""

    def __init__(
        self, project: str, folder: Path, config: dict[str, Any], resume_step: int, known: Path
    ) -> None:
        import wandb

        run_id = _kept_id(known, project, resume_step)
        again: dict[str, Any] = {"id": run_id, "resume": "allow"} if run_id else {}
        remedy = "log in (wandb login), set WANDB_MODE=offline, or leave the key out"
        with border(f"run.wandb_project = {project!r}", remedy, RunError):
            self._run = wandb.init(project=project, dir=str(folder), config=config, **again)
            if run_id:
                self._run.config.update(config, allow_val_change=True)
        _keep_id(known, project, self._run.id)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def back_to(self, step: int) -> None:
        """Nothing: what W&B has stays, and it leaves out what it is told of earlier steps."""

    def close(self) -> None:
        self._run.finish()


class MlflowSink:
    """MLflow, at MLFLOW_TRACKING_URI or in its own default place; leaves its active run alone."""

    def __init__(
        self, project: str, folder: Path, config: dict[str, Any], resume_step: int, known: Path
    ) -> None:
        import mlflow

        self._metric = mlflow.entities.Metric
        self._run_id = _kept_id(known, project, resume_step)
        self._border = partial(
            border,
            f"run.mlflow_experiment = {project!r}",
            "set MLFLOW_TRACKING_URI to a server that answers, or leave the key out",
            RunError,
        )
        with self._border():
            self._client = mlflow.MlflowClient()
            if not self._run_id:
                there = self._client.get_experiment_by_name(project)
                at = there.experiment_id if there else self._client.create_experiment(project)
                self._run_id = self._client.create_run(at, run_name=folder.name).info.run_id
            self._client.log_dict(self._run_id, config, "config.yaml")
        _keep_id(known, project, self._run_id)

    def write(self, step: int, values: dict[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [
            self._metric(_NOT_MLFLOW.sub("_", name), value, now, step)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        with self._border():
            self._client.log_batch(self._run_id, metrics)

    def back_to(self, step: int) -> None:
        """Nothing: MLflow keeps both values of a step."""

    def close(self) -> None:
        with self._border():
            self._client.set_terminated(self._run_id)


class TrackioSink:
    """Trackio, which knows its runs by their names."""

    def __init__(
        self, project: str, folder: Path, config: dict[str, Any], resume_step: int, known: Path
    ) -> None:
        import trackio

        name = _kept_id(known, project, resume_step)
        with border(f"run.trackio_project = {project!r}", "or leave the key out", RunError):
            self._run = trackio.init(
                project=project,
                name=name,
                config=config,
                resume="allow" if name else "never",
                embed=False,
            )
        _keep_id(known, project, self._run.name)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def back_to(self, step: int) -> None:
        """Nothing: Trackio keeps both values of a step."""

    def close(self) -> None:
        self._run.finish()


def _kept_id(known: Path, project: str, resume_step: int) -> str | None:
    """The id of the run there that is to go on; None: a new one begins."""
    if resume_step <= 0 or not known.is_file():
        return None
    with border(str(known), "delete it: a new run then begins there", RunError):
        kept = json.loads(known.read_text(encoding="utf-8"))
        return str(kept["id"]) if kept["project"] == project else None


def _keep_id(known: Path, project: str, run_id: str) -> None:
    write_whole(known, json.dumps({"project": project, "id": run_id}))
