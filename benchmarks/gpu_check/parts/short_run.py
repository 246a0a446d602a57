"""A few steps of the demo as a user starts it, with some of its roles on GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from math import isnan
from pathlib import Path

from gpu_check.findings import Findings

STEPS = 6
KEYS = [
    f"run.steps={STEPS}",
    "run.checkpoint_every=0",
    "run.export_at_end=false",
    "eval.every=0",
    "eval.tasks=[]",
    "eval.kl_prompts=0",
    "eval.teacher_accuracy=false",
    "rollout.prompts_per_step=32",
]
_ROLLOUTS = [
    "rollout.gpus_per_actor=1",
    "rollout.gpu_memory_utilization=0.3",
    # What vLLM's attention on GPUs is made for; the trainer rounds as it does.
    "rollout.dtype=bfloat16",
    "trainer.dtype=bfloat16",
    "sync.max_gap=0.1",
]
_TRAINER = ["trainer.gpus_per_rank=1"]
_TEACHER = ["teacher.gpus_per_replica=1"]
# What sets the run apart, on any machine.
KINDS = {
    "rollouts": [],
    # At this rate an adapter that is a step old is a gap that is told from rounding.
    "lora": ["student.lora.rank=16", "student.lora.alpha=32", "trainer.learning_rate=5e-3"],
    "turns": ["cluster.placement=turns"],
    "ipc": ["cluster.placement=turns"],
    "teacher": [],
    "trainer": [],
    "nccl": [],
    "shared": ["cluster.placement=shared"],
}
# What of it is on GPUs, on a machine that has some.
ON_GPUS = {
    "rollouts": _ROLLOUTS,
    "lora": _ROLLOUTS,
    "turns": [*_ROLLOUTS, *_TRAINER, *_TEACHER],
    "ipc": [*_ROLLOUTS, *_TRAINER, *_TEACHER, "sync.backend=ipc"],
    "teacher": [*_ROLLOUTS, *_TEACHER],
    "trainer": [*_ROLLOUTS, *_TRAINER],
    "nccl": [*_ROLLOUTS, *_TRAINER, "sync.backend=nccl"],
    "shared": [*_ROLLOUTS, *_TRAINER, "teacher.gpus_per_replica=0.3"],
}
SHOWN = ("seconds/step", "seconds/rollout", "seconds/train", "seconds/sync")
# Of trainer and engine, nats: float32 on both sides, or bfloat16.
GAP_LIMITS = {"cpu": 1e-3, "cuda": 5e-2}


def keys_of(kind: str, device: str) -> list[str]:
    """What the command is given."""
    return [*KEYS, *KINDS[kind], *(ON_GPUS[kind] if device == "cuda" else [])]


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; ``argument``: which."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        keys = [*keys_of(argument, device), f"run.output_dir={output}"]
        command = [sys.executable, "-m", "opd_ray", "demo", *keys]
        print("opd-ray demo", *keys[:-1], flush=True)
        done = subprocess.run(command, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"opd-ray demo ended with exit code {done.returncode}")
        lines = (output / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    trained = [step for step in steps if "train/loss" in step]
    findings.check("steps that are missing", float(STEPS - len(trained)), 0.0)
    # From the second step on, the engine writes with weights that were sent to it.
    gaps = [step["sync/gap_mean"] for step in trained[1:] if "sync/gap_mean" in step]
    findings.check("gap of trainer and engine after a sync, nats", max(gaps), GAP_LIMITS[device])
    # Other prompts at every step: nothing is to be seen in how it goes.
    losses = [step["train/loss"] for step in trained]
    findings.figure("losses", ", ".join(f"{value:.4f}" for value in losses), "nats")
    findings.check("losses that are no numbers", float(sum(map(isnan, losses))), 0.0)
    for name in SHOWN:
        values = [step[name] for step in trained[1:] if name in step]
        if values:
            findings.figure(f"{name}, least", min(values), "s")
    for name in sorted({name for step in trained for name in step}):
        if name.startswith("memory/"):
            findings.figure(name, max(step.get(name, 0) for step in trained) / 1e9, "GB")
