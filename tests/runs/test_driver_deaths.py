"""A run whose own process is killed, and whose Ray is: started again, with nothing left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from launching import end, family, rows, start, wait_for_step

from opd_ray.output.checkpoint import CheckpointStore


@pytest.mark.timeout(300)
def test_a_killed_driver_and_a_dead_ray_are_started_again(tmp_path: Path) -> None:
    output = tmp_path / "run"
    run = start(output, "run.steps=100000", "run.checkpoint_every=1", "--retries", "2")
    try:
        wait_for_step(run, output, 2)
        everyone = family(run)
        (driver,) = psutil.Process(run.pid).children()
        driver.kill()
        wait_for_words(output, "the run was killed by SIGKILL; it is started again in 5 s")
        assert not [p.cmdline() for p in everyone if p.is_running()]
        known = step_of_checkpoint(output)
        wait_for_words(output, f"at step {known}\n")
        wait_for_step(run, output, known + 1)
        (head,) = [p for p in family(run) if p.name() == "gcs_server"]
        begin = time.monotonic()
        head.kill()
        wait_for_words(output, "is gone ([Errno 111] Connection refused); the same command goes on")
        assert time.monotonic() - begin < 5
        wait_for_words(output, "the run ended with exit code 1")
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(30) == 130
        assert family(run) == []
    finally:
        end(run)
    assert step_of_checkpoint(output) >= known
    steps = [row["step"] for row in rows(output)]
    assert steps == list(range(1, len(steps) + 1))  # each once


def wait_for_words(output: Path, words: str, timeout_s: float = 180) -> None:
    """Return once a run has said this."""
    log = output.with_suffix(".log")
    deadline = time.monotonic() + timeout_s
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def step_of_checkpoint(output: Path) -> int:
    newest = CheckpointStore(output / "checkpoints", keep=2).newest()
    assert newest is not None
    return newest[1].step
