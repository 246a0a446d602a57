"""Starting real runs as a user does, as a process of their own, and looking into them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

# For what a run does next, on a machine that may be busy with ten others.
PATIENCE_S = 400.0
# The demo at its smallest: every part real, few tokens, no evaluation beyond what a test asks for.
SMALL = (
    "run.resume=auto",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=2",
    "rollout.max_num_seqs=16",
    "eval.every=0",
    "eval.tasks=[]",
    "eval.kl_prompts=0",
    "eval.teacher_accuracy=false",
    "run.export_at_end=false",
    "run.checkpoint_every=0",
    "trainer.warmup_steps=0",
    "cluster.num_cpus=2",
)


def start(output: Path, *overrides: str) -> subprocess.Popen[str]:
    """A demo run in the background, in a process group of its own, printing to a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "opd_ray", "demo", f"run.output_dir={output}", *SMALL]
    return start_command([*command, *overrides], output)


def start_command(command: Sequence[str], output: Path, **where: Any) -> subprocess.Popen[str]:
    """The same for any command whose run has this folder; ``where``: options of Popen."""
    with output.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **{"env": {**os.environ, "RAY_ADDRESS": ""}, **where},
        )


def finish(
    run: subprocess.Popen[str], output: Path, timeout_s: float = PATIENCE_S
) -> tuple[int, str]:
    """Exit code and everything printed."""
    try:
        code = run.wait(timeout_s)
    except subprocess.TimeoutExpired:
        end(run)
        raise
    return code, output.with_suffix(".log").read_text()


def end(run: subprocess.Popen[str]) -> None:
    """Kill a run and all it started."""
    for process in family(run):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    run.kill()
    run.wait(30)


def family(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """Every process below a run: Ray's own and the actors."""
    try:
        return psutil.Process(run.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def actor_process(run: subprocess.Popen[str], actor_class: str) -> psutil.Process:
    """The process of an actor, by its class; Ray shows it in the process title."""
    for process in family(run):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith(f"ray::{actor_class}"):
            return process
    raise LookupError(f"no process of {actor_class} below {run.pid}")


def rows(output: Path) -> list[dict[str, float]]:
    """The training rows written so far."""
    path = output / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return [row for row in map(json.loads, lines) if "train/loss" in row]


def wait_for_step(
    run: subprocess.Popen[str], output: Path, step: int, timeout_s: float = PATIENCE_S
) -> None:
    """Return once a run has finished ``step`` steps."""
    deadline = time.monotonic() + timeout_s
    log = output.with_suffix(".log")
    while len(rows(output)) < step:
        assert run.poll() is None, f"ended early:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"no step {step}:\n{log.read_text()[-3000:]}"
        time.sleep(0.2)
