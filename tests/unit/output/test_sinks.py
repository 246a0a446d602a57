"""Metric files, the stage clock and seeds."""

from __future__ import annotations

import json
import math
import resource
import threading
import time
from pathlib import Path

import pytest

from opd_ray.coordinator.metrics import StageClock
from opd_ray.errors import RunError, WriteError
from opd_ray.output.sinks import (
    JsonlSink,
    Metrics,
    TensorBoardSink,
    has_evaluation,
    read_jsonl,
)
from opd_ray.seeds import derive_seed


def test_rows_of_one_step_are_merged_and_a_resumed_run_rewrites_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics([JsonlSink(path, resume_step=0)])
    for step in (1, 2, 3):
        metrics.write(step, {"train/loss": float(step)})
    metrics.write(3, {"eval/kl": 0.5})
    metrics.close()
    with path.open("a") as file:
        file.write('{"step": 4, "train/lo')  # what a killed process may leave
    resumed = Metrics([JsonlSink(path, resume_step=2)])
    resumed.write(3, {"train/loss": 30.0})
    resumed.close()
    assert read_jsonl(path) == [
        {"step": 1, "train/loss": 1.0},
        {"step": 2, "train/loss": 2.0},
        {"step": 3, "train/loss": 30.0},
    ]


def test_a_run_that_goes_back_replaces_what_it_wrote(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, board = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    metrics = Metrics([JsonlSink(path, 0), TensorBoardSink(board, 0)])
    for step in (1, 2, 3, 4):
        metrics.write(step, {"train/loss": float(step)})
    metrics.write(2, {"eval/kl": 0.5, "seconds/eval": 1.0})
    metrics.write(4, {"eval/kl": 0.25, "seconds/eval": 1.0})
    assert has_evaluation(path, 4)
    metrics.back_to(2)
    assert has_evaluation(path, 2)
    assert not has_evaluation(path, 4)
    for step in (3, 4):
        metrics.write(step, {"train/loss": 10.0 * step})
    metrics.close()
    assert read_jsonl(path) == [
        {"step": 1, "train/loss": 1.0},
        {"step": 2, "train/loss": 2.0, "eval/kl": 0.5, "seconds/eval": 1.0},
        {"step": 3, "train/loss": 30.0},
        {"step": 4, "train/loss": 40.0},
    ]
    assert len(path.read_text().splitlines()) == 5
    seen = EventAccumulator(str(board)).Reload()
    losses = [(event.step, event.value) for event in seen.Scalars("train/loss")]
    assert losses == [(1, 1), (2, 2), (3, 30), (4, 40)]
    assert [(event.step, event.value) for event in seen.Scalars("eval/kl")] == [(2, 0.5)]


def test_a_file_of_metrics_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl: KeyError: 'step'; mend or delete it"):
        JsonlSink(path, resume_step=0)


def test_what_is_no_number_is_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path, resume_step=0)
    sink.write(1, {"a": math.nan, "b": math.inf, "c": 2})
    sink.close()
    assert json.loads(path.read_text()) == {"step": 1, "a": None, "b": None, "c": 2}
    [row] = read_jsonl(path)
    assert math.isnan(row["a"])
    assert row["c"] == 2


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_step, steps, value in ((0, (1, 2, 3, 4), 1.0), (2, (3, 4), 2.0)):
        sink = TensorBoardSink(tmp_path, resume_step)
        for step in steps:
            sink.write(step, {"train/loss": value})
        sink.close()
    seen = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in seen] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_files_of_events_are_in_order_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # It jumps back by a day; then it stands still.
    for resume_step, now in ((0, 1_000_086_400), (1, 1_000_000_000), (2, 1_000_000_000)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        sink = TensorBoardSink(tmp_path, resume_step)
        for step in range(resume_step + 1, 4):
            sink.write(step, {"a": float(resume_step)})
        sink.close()
    names = sorted(path.name.split(".")[3] for path in tmp_path.iterdir())
    assert names == ["1000086400", "1000086401", "1000086402"]
    seen = EventAccumulator(str(tmp_path)).Reload().Scalars("a")
    assert [(event.step, event.value) for event in seen] == [(1, 0), (2, 1), (3, 2)]


def test_a_full_disk_leaves_whole_rows_and_no_thread_behind(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows, events = JsonlSink(tmp_path / "metrics.jsonl", 0), TensorBoardSink(tmp_path / "tb", 0)
    threads = threading.active_count()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for sink in (rows, events):
        sink.write(1, {"a": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
        try:
            with pytest.raises(WriteError, match="cannot be written: File too large"):
                sink.write(2, {f"name {n}": 2.0 for n in range(50)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sink.write(3, {"a": 3.0})  # there is room again
        sink.close()
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 3]
    found = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("a")] == [(1, 1), (3, 3)]
    assert threading.active_count() == threads


def test_the_clock_splits_a_step_into_stages_and_idle_time() -> None:
    clock = StageClock()
    with clock.stage("train"):
        time.sleep(0.02)
    clock.worked("train", 0.005)
    time.sleep(0.01)
    report = clock.report()
    assert report["seconds/train"] >= 0.02
    assert report["seconds/idle"] >= 0.02  # 0.01 outside and 0.015 inside the stage
    assert report["seconds/step"] >= report["seconds/train"] + 0.01
    with (
        clock.stage("a"),
        pytest.raises(RuntimeError, match="'b' began inside stage 'a'"),
        clock.stage("b"),
    ):
        pass


def test_seeds_depend_on_every_part_and_its_place() -> None:
    seeds = {
        derive_seed(0, 1, "p", 2),
        derive_seed(1, 0, "p", 2),
        derive_seed(0, 1, "p", 3),
        derive_seed(0, 1, "q", 2),
        derive_seed(0, 1, "p2"),
        derive_seed(0, "1", "p", 2),
    }
    assert len(seeds) == 6
    assert derive_seed(0, 1, "p", 2) == derive_seed(0, 1, "p", 2)
    assert all(0 <= seed < 2**63 for seed in seeds)
