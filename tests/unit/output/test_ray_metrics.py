"""A run's figures among Ray's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest

from opd_ray.output import ray_metrics
from opd_ray.output.ray_metrics import RayMetrics


class Gauge:
    """As Ray's: refuses labels that it was not made with."""

    all: ClassVar[dict[str, Gauge]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self._keys = tag_keys
        self.values: dict[tuple[str, ...], float] = {}
        self.all[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self._default = tags

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        labels: dict[str, Any] = {**self._default, **(tags or {})}
        assert {*labels} == {*self._keys}
        self.values[tuple(labels[key] for key in self._keys)] = value


def test_step_stage_queue_and_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_metrics, "Gauge", Gauge)
    sink = RayMetrics(Path("out"))
    sink.stage("train")
    sink.stage("sync")
    sink.write(
        3,
        {
            "teacher/queue_tokens": 7.0,
            "sync/gap_mean": 0.25,
            "seconds/train": 1.5,
            "train/loss": math.nan,
            "eval/kl": 1.0,
        },
    )
    found = {name: dict(gauge.values) for name, gauge in Gauge.all.items() if gauge.values}
    assert found == {
        "opd_ray_step": {("out",): 3},
        "opd_ray_stage": {("out", "train"): 0.0, ("out", "sync"): 1.0},
        "opd_ray_teacher_queue_tokens": {("out",): 7.0},
        "opd_ray_sync_gap_nats": {("out",): 0.25},
        "opd_ray_stage_seconds": {("out", "train"): 1.5},
    }
    for gauge in Gauge.all.values():
        gauge.values.clear()  # as Ray forgets
    sink.still_at_work()
    assert {name: gauge.values for name, gauge in Gauge.all.items() if gauge.values} == found
    sink.back_to(2)
    sink.close()
    assert Gauge.all["opd_ray_step"].values == {("out",): 2}
    assert Gauge.all["opd_ray_stage"].values[("out", "sync")] == 0.0
