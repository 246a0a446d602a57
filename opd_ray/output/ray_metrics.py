"""A run's figures among Ray's own, which every node of the cluster offers to Prometheus.

Names as Ray shows them: ``ray_opd_ray_step`` and so on; each has the label ``run``, the run's
folder. Ray shows a value for some 20 seconds after it was told it, so all are told again and again.
"""

from __future__ import annotations

import math
from pathlib import Path

from ray.util.metrics import Gauge

# By the figure of a step that it shows.
_OF_STEPS = {
    "teacher/queue_tokens": ("opd_ray_teacher_queue_tokens", "longest queue at a teacher, tokens"),
    "sync/gap_mean": ("opd_ray_sync_gap_nats", "mean difference of trainer and vLLM, nats"),
    "tokens_per_second/step": ("opd_ray_tokens_per_second", "tokens of the last step a second"),
    "train/loss": ("opd_ray_loss", "training loss of the last step, nats a kept token"),
}
_SECONDS = "seconds/"


class RayMetrics:
    """A sink of a run's numbers; it is told of stages too."""

    def __init__(self, run: Path) -> None:
        self._labels = {"run": str(run)}
        self._step = self._gauge("opd_ray_step", "steps taken")
        self._stage = self._gauge("opd_ray_stage", "1 of the stage that is at work", "stage")
        self._seconds = self._gauge(
            "opd_ray_stage_seconds", "seconds of a stage in the last step", "stage"
        )
        self._figures = {name: self._gauge(*named) for name, named in _OF_STEPS.items()}
        self._at_work: str | None = None
        self._told: dict[tuple[Gauge, str], float] = {}  # by gauge and stage, "" where it has none

    def stage(self, name: str) -> None:
        """A stage begins."""
        if self._at_work is not None:
            self._tell(self._stage, 0.0, self._at_work)
        self._at_work = name
        self._tell(self._stage, 1.0, name)

    def still_at_work(self) -> None:
        """Some seconds have passed: tell all that was told again."""
        for (gauge, stage), value in self._told.items():
            gauge.set(value, {"stage": stage} if stage else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._tell(self._step, step)
        for name, value in values.items():
            if not math.isfinite(value):
                continue
            if name in self._figures:
                self._tell(self._figures[name], value)
            elif name.startswith(_SECONDS):
                self._tell(self._seconds, value, name.removeprefix(_SECONDS))

    def back_to(self, step: int) -> None:
        """The steps after this one are taken again."""
        self._tell(self._step, step)

    def close(self) -> None:
        """No stage is at work any more."""
        if self._at_work is not None:
            self._tell(self._stage, 0.0, self._at_work)

    def _tell(self, gauge: Gauge, value: float, stage: str = "") -> None:
        self._told[gauge, stage] = value
        gauge.set(value, {"stage": stage} if stage else None)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        gauge = Gauge(name, description=description, tag_keys=("run", *labels))
        gauge.set_default_tags(self._labels)
        return gauge
