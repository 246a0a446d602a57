"""A run whose process is killed, and its Ray, goes on by itself as one that nothing befell.

And the same run again without its teacher, whose answers were recorded.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from in_process import run
from launching import PATIENCE_S, end, family, rows, start, wait_for_step
from safetensors.torch import load_file

from opd_ray.cli import main
from opd_ray.output.checkpoint import CheckpointStore

# The learning rate goes up in every step that is looked at, whatever run.steps is.
_WARM_UP = 20
_RUN = (
    *("run.checkpoint_every=5", "run.keep_checkpoints=99"),
    *(f"trainer.warmup_steps={_WARM_UP}", "trainer.lr_schedule=constant"),
    "trainer.learning_rate=7e-4",
)
_SAME = (
    "train/loss",
    "train/kept_tokens",
    "train/grad_norm",
    "train/learning_rate",
    "rollout/tokens",
    "scores/reverse_kl_mean",
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the teacher's answers are recorded."""
    return f"teacher.cache_dir={tmp_path_factory.mktemp('answers') / 'recorded'}"


@pytest.fixture(scope="module")
def whole(ray_address: str, answers: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole") / "run"
    joined = f"cluster.address={ray_address}"
    run(output, *_RUN, f"run.steps={_WARM_UP}", joined, answers, "teacher.cache=record")
    return output


def test_without_its_teacher(ray_address: str, whole: Path, answers: str, tmp_path: Path) -> None:
    replayed, joined = tmp_path / "replayed", f"cluster.address={ray_address}"
    gone = ("teacher.path=/gone/teacher", "teacher.cache=replay")
    run(replayed, *_RUN, "run.steps=3", joined, answers, *gone)
    for one, other in zip(rows(whole)[:3], rows(replayed), strict=True):
        for name in _SAME:
            assert other[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.timeout(1200)
def test_a_killed_driver_and_a_dead_ray_are_started_again(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(output, *_RUN, "run.steps=100000", "--retries", "2")
    try:
        # Past its checkpoint, so that something must be forgotten.
        wait_for_step(process, output, 6)
        everyone = family(process)
        (driver,) = psutil.Process(process.pid).children()
        driver.kill()
        wait_for_words(output, "the run was killed by SIGKILL; it is started again in 5 s")
        assert not [p.cmdline() for p in everyone if p.is_running()]
        known = step_of_checkpoint(output)
        # A new process with new actors has nothing but what was written.
        wait_for_words(output, f"at step {known}\n")
        wait_for_step(process, output, known + 6)
        (head,) = [p for p in family(process) if p.name() == "gcs_server"]
        begin = time.monotonic()
        head.kill()
        wait_for_words(output, "is gone ([Errno 111] Connection refused); the same command goes on")
        assert time.monotonic() - begin < 40  # Ray itself takes a minute
        wait_for_words(output, "the run ended with exit code 1")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 130
        assert family(process) == []
    finally:
        end(process)
    end_of_both = known + 5  # resumed steps among those that are compared
    assert end_of_both <= _WARM_UP
    assert step_of_checkpoint(output) >= end_of_both
    parts = [json.loads(line) for line in (output / "history.jsonl").open()]
    assert [part["from_step"] for part in parts] == [0, known]
    assert parts[0]["prompts"] == parts[1]["prompts"]
    second = rows(output)
    assert [row["step"] for row in second] == list(range(1, len(second) + 1))  # each once
    # The warm-up by hand, not from one run to the other alone.
    rates = [7e-4 * step / _WARM_UP for step in range(1, end_of_both + 1)]
    compared = second[:end_of_both]
    assert [row["train/learning_rate"] for row in compared] == pytest.approx(rates, rel=1e-6)
    for one, other in zip(rows(whole)[:end_of_both], compared, strict=True):
        for name in _SAME:
            assert abs(one[name] - other[name]) <= 1e-4 * max(1.0, abs(one[name])), name
    one, other = (
        student_after(end_of_both, folder, tmp_path / name)
        for folder, name in ((whole, "whole"), (output, "broken"))
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=name)


def wait_for_words(output: Path, words: str, timeout_s: float = PATIENCE_S) -> None:
    """Return once a run has said this."""
    log = output.with_suffix(".log")
    deadline = time.monotonic() + timeout_s
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def step_of_checkpoint(output: Path) -> int:
    newest = CheckpointStore(output / "checkpoints", keep=99).newest()
    assert newest is not None
    return newest[1].step


def student_after(step: int, output: Path, exported: Path) -> dict[str, torch.Tensor]:
    checkpoint = output / "checkpoints" / f"step_{step:08d}"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(exported)]) == 0
    return load_file(exported / "model.safetensors")
