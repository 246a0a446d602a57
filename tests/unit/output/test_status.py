"""``opd-ray status``: a run at work, finished, stopped, failed and dead, from its folder alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from opd_ray.cli import main
from opd_ray.config.load import load_config, to_yaml
from opd_ray.errors import OutputFolderError
from opd_ray.output.activity import Activity
from opd_ray.output.checkpoint import CheckpointStore, RunState
from opd_ray.output.folder import OutputFolder, lock_holder
from opd_ray.output.status import Standing, read_status

STEP = {
    "train/loss": 0.5,
    "tip/kept_fraction": 0.5,
    "seconds/step": 2.0,
    "tokens_per_second/step": 800.0,
}
ROWS: list[dict[str, Any]] = [
    {"step": 0, "eval/kl": 0.5, "eval/sums/accuracy": 0.25},
    {"step": 1, **STEP},
    {"step": 2, **STEP, "train/loss": 0.25},
    {"step": 2, "eval/kl": 0.125, "eval/sums/accuracy": 0.5, "eval/sums/accuracy_se": 0.1},
]


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    """A run of 8 steps that has taken two; nobody is at work on it."""
    output = OutputFolder(tmp_path / "run")
    output.path.mkdir()
    config = load_config("demo", {"run.steps": 8, "run.output_dir": output.path})
    output.config.write_text(to_yaml(config))
    output.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (output.path / "run.lock").touch()
    store = CheckpointStore(output.checkpoints, 2, to_yaml(config))
    store.save(RunState(2, 0, 8, {}, batches=[], prompts={}), lambda trainer: None)
    return output


def told(output: OutputFolder) -> str:
    return "\n".join(read_status(output.path).lines())


def test_a_run_at_work_tells_what_it_does_and_how_long_it_will_take(folder: OutputFolder) -> None:
    activity = Activity(8, 2, "rollout_and_teacher", since=time.time() - 5)
    activity.written, activity.scored, activity.rollouts = 40, 32, 128
    activity.seconds_a_step = 20.0
    with folder:
        activity.write(folder.status)
        status = read_status(folder.path)
        assert status.standing is Standing.at_work
        assert status.well
        holder = f"process {os.getpid()} on {socket.gethostname()}, started "
        lines = [*status.lines()]
        assert lines[:-1] == [
            f"{folder.path}: at work, 2 of 8 steps",
            "now: writing and scoring 40 and 32 of 128 rollouts, for 5 s",
            "rate: 2.00 s for step 2, about 2 min left, 800 tokens/s, loss 0.2500, kept 0.50",
            "evaluation at step 2: kl 0.1250  sums/accuracy 0.5000",
            "newest checkpoint: step_00000002",
        ]
        assert lines[-1].startswith(holder)
        activity.updated = time.time() - 600
        old = {**json.loads(folder.status.read_text()), "updated": activity.updated}
        folder.status.write_text(json.dumps(old))
        assert told(folder).endswith("; last sign of life 10 min ago")


def test_a_study_tells_its_cell_and_how_many_are_finished(folder: OutputFolder) -> None:
    folder.metrics.rename(folder.path / "half.jsonl")
    folder.history.add_study(6, 2)
    with folder:
        assert told(folder).startswith(f"{folder.path}: its models are loading, 2 of 6 cells")
        cell = "cell 3 of 6 (half, seed 1)"
        Activity(8, 2, "train", cell=cell, figures="half.jsonl").write(folder.status)
        first, now, rate, *_ = read_status(folder.path).lines()
        assert first == f"{folder.path}: at work, {cell}, 2 of 8 steps"
        assert now.startswith("now: training, for ")
        assert rate == "rate: 2.00 s for step 2, 800 tokens/s, loss 0.2500, kept 0.50"
    assert told(folder).startswith(f"{folder.path}: {Standing.dead}, {cell}, 2 of 8 steps")
    folder.status.unlink()
    folder.history.stop(3, "it was asked to stop", failed=False)
    assert told(folder).startswith(f"{folder.path}: stopped, 3 of 6 cells")
    assert told(folder).endswith(f"to go on: opd-ray study --config {folder.config}")
    folder.history.add_study(6, 3)
    folder.history.finish(6)
    assert told(folder).startswith(f"{folder.path}: finished, 6 of 6 cells")


def test_a_run_whose_models_load_is_not_what_was_there_before(folder: OutputFolder) -> None:
    Activity(8, 2, "train", pid=1).write(folder.status)
    folder.history.stop(2, "no more memory", failed=True)
    with folder:
        status = read_status(folder.path)
        assert status.standing is Standing.loading
        assert "now:" not in told(folder)
        assert "memory" not in told(folder)


def test_a_run_at_which_nobody_works_any_more(folder: OutputFolder) -> None:
    folder.history.stop(2, "it was asked to stop", failed=False)
    status = read_status(folder.path)
    assert (status.standing, status.well) == (Standing.stopped, False)
    assert [*status.lines()] == [
        f"{folder.path}: stopped, 2 of 8 steps",
        "why: it was asked to stop",
        "rate: 2.00 s for step 2, 800 tokens/s, loss 0.2500, kept 0.50",
        "evaluation at step 2: kl 0.1250  sums/accuracy 0.5000",
        "newest checkpoint: step_00000002",
        f"to go on: opd-ray train --config {folder.config}",
    ]
    folder.history.stop(2, "teacher-0 failed: no more memory", failed=True)
    assert read_status(folder.path).standing is Standing.failed
    assert "why: teacher-0 failed: no more memory" in told(folder)
    folder.history.finish(8)
    status = read_status(folder.path)
    assert (status.standing, status.well) == (Standing.finished, True)
    assert "to go on" not in told(folder)
    assert "why" not in told(folder)


def test_a_run_that_was_killed_says_what_it_did_last(folder: OutputFolder) -> None:
    folder.history.stop(1, "an earlier part", failed=True)
    activity = Activity(8, 3, "train", seconds_a_step=20.0)
    activity.write(folder.status)
    old = {**json.loads(folder.status.read_text()), "updated": time.time() - 120}
    folder.status.write_text(json.dumps(old))
    status = read_status(folder.path)
    assert (status.standing, status.well) == (Standing.dead, False)
    lines = [*status.lines()]
    assert lines[0].startswith(f"{folder.path}: dead: its process is gone")
    assert lines[0].endswith(", 3 of 8 steps")
    assert lines[1] == "last sign of life: training, 2 min ago"
    assert "left" not in told(folder)
    assert "earlier" not in told(folder)


def test_a_run_that_was_killed_before_it_said_anything(folder: OutputFolder) -> None:
    assert read_status(folder.path).standing is Standing.dead


def test_a_run_that_has_done_nothing_yet(tmp_path: Path) -> None:
    with OutputFolder(tmp_path):
        status = read_status(tmp_path)
        assert status.standing is Standing.loading
        assert next(status.lines()) == f"{tmp_path}: its models are loading, 0 of 0 steps"


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OutputFolderError, match="neither config.yaml nor run.lock"):
        read_status(tmp_path)
    assert main(["status", str(tmp_path / "no")]) == 2
    assert "is no run's folder" in capsys.readouterr().err


def test_the_command_tells_by_its_exit_code(
    folder: OutputFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(folder.path)]) == 1
    assert capsys.readouterr().out.startswith(f"{folder.path}: dead")
    folder.history.finish(8)
    assert main(["status", str(folder.path)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder.path}: finished, 2 of 8 steps")


HOLDS = """
import sys
from opd_ray.output.folder import OutputFolder
with OutputFolder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_nobodys(tmp_path: Path) -> None:
    assert lock_holder(tmp_path / "run.lock") == ""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert lock_holder(tmp_path / "run.lock").startswith(f"process {holder.pid} on ")
    holder.kill()
    holder.wait()
    assert lock_holder(tmp_path / "run.lock") == ""
