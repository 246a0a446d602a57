"""What bounds each stage of a step: its products and bytes beside what the machine can do.

    opd-ray fetch-smollm2
    python benchmarks/roofline.py [--dtype float32] [--data FOLDER]

The stages of end_to_end.py's step one by one, each in a process of its own with the environment and
the threads that a run gives it.

- Machine: matrix products of 2048 x 2048 and of 16 rows, and copies, by one thread.
- A stage: FLOP of its matrix products, attention included (2 a multiplication and addition; the
  causal half), and the seconds they take at the rate of the large product on all cores.
- Measured: CPU seconds of the process; seconds of its main thread, which are the least wall time
  that it can have as it works now; wall time, which other processes lengthen. Medians of three
  turns; of the rollouts the last, whose texts the other stages get.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

HERE = Path(__file__).parent
RESULTS = HERE / "results"
GIGA = 1e9


@dataclass(frozen=True)
class Machine:
    """Rates of one thread, by CPU time, so that other processes count less."""

    product: float  # FLOP/s, 2048 x 2048 x 2048
    decode: float  # FLOP/s, 16 rows by a matrix of the student's
    copy: float  # bytes/s read and written
    cores: int


@dataclass(frozen=True)
class Work:
    """What one turn of a stage has to do."""

    flop: float
    moved: float  # bytes of weights and optimizer state that are read and written at least
    why: str


def rate(work: float, function: Callable[[], Any]) -> float:
    """The best of several tries, per CPU second of this thread."""
    best = 0.0
    for _ in range(7):
        begin = time.thread_time()
        function()
        best = max(best, work / (time.thread_time() - begin))
    return best


def measure_machine(dtype: torch.dtype, hidden: int, inner: int) -> Machine:
    """Rates in that number format."""
    torch.set_num_threads(1)
    large = torch.randn(2048, 2048).to(dtype)
    rows, matrix = torch.randn(16, hidden).to(dtype), torch.randn(inner, hidden).to(dtype)
    source = torch.ones(1 << 26)  # 256 MiB: no cache holds it
    target = torch.zeros_like(source)

    def decode() -> None:
        for _ in range(200):
            torch.nn.functional.linear(rows, matrix)

    return Machine(
        rate(2 * 2048**3, lambda: large @ large),
        rate(200 * 2 * 16 * hidden * inner, decode),
        rate(2 * source.nbytes, lambda: target.copy_(source)),
        len(os.sched_getaffinity(0)),
    )


@dataclass(frozen=True)
class Sizes:
    """Multiplications a token, of a model."""

    trunk: int  # weights of the layers' matrices
    head: int  # weights of the output layer
    attention: int  # layers x heads x head size

    @classmethod
    def of(cls, folder: Path) -> Sizes:
        c = AutoConfig.from_pretrained(folder)
        wide = c.num_attention_heads * c.head_dim
        narrow = c.num_key_value_heads * c.head_dim
        layer = c.hidden_size * (2 * wide + 2 * narrow + 3 * c.intermediate_size)
        return cls(
            c.num_hidden_layers * layer, c.vocab_size * c.hidden_size, c.num_hidden_layers * wide
        )


def works(
    counts: dict[str, dict[str, float]], student: Sizes, teacher: Sizes, width: int
) -> dict[str, Work]:
    """Of every stage; ``width`` is the bytes of a number."""
    written, judged, trained = counts["rollout"], counts["teacher"], counts["trainer"]
    tokens = written["prompt"] + written["response"]
    # Two products of the causal half of every text's square.
    seen = 2 * 2 * written["squares"] / 2
    weights = student.trunk + student.head
    return {
        "rollout": Work(
            2 * student.trunk * tokens
            + 2 * student.head * written["response"]
            + student.attention * seen,
            width * weights * written["steps"],
            f"{written['prompt']:.0f} + {written['response']:.0f} tokens in "
            f"{written['steps']:.0f} passes",
        ),
        "teacher": Work(
            2 * teacher.trunk * tokens
            + 2 * teacher.head * judged["rows"]
            + teacher.attention * seen,
            width * (teacher.trunk + teacher.head),
            f"{tokens:.0f} tokens, {judged['rows']:.0f} rows of logits",
        ),
        "trainer": Work(
            # Forward once, backward twice; of attention the weights are computed again.
            6 * student.trunk * trained["trunk"]
            + (6 * student.head + 2 * teacher.head) * trained["rows"]
            + 3.5 * student.attention * seen,
            # The weight, three float32 of the optimizer read and written, its gradient written and
            # read, in float32 too where it is summed.
            weights * (2 * width + 6 * 4 + 2 * width + 2 * 4),
            f"{trained['trunk']:.0f} tokens, {trained['rows']:.0f} rows of logits",
        ),
    }


def report(
    machine: Machine, turns: dict[str, list[dict[str, float]]], work: dict[str, Work], dtype: str
) -> str:
    """The tables."""
    lines = [
        f"# What bounds a step, {dtype}",
        "",
        f"Made by `python benchmarks/roofline.py --dtype {dtype}` on {machine.cores} CPU cores "
        f"({platform.machine()}), no GPU; load {os.getloadavg()[0]:.1f}.",
        "",
        f"A thread: {machine.product / GIGA:.0f} GFLOP/s in large products, "
        f"{machine.decode / GIGA:.0f} with 16 rows, {machine.copy / GIGA:.1f} GB/s read and "
        "written.",
        "",
        "| stage | work | GFLOP | GB moved | s at the products' rate | s of bytes | CPU s | "
        "products / CPU s | main thread, s | wall, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    sums = dict.fromkeys(("flop", "bound", "cpu", "main", "seconds"), 0.0)
    for stage, one in work.items():
        last, measured = turns[stage][-1], ("cpu", "main", "seconds")
        middle = {key: last[key] for key in measured}
        if stage != "rollout":  # whose turns write different texts
            middle = {
                key: statistics.median(turn[key] for turn in turns[stage]) for key in measured
            }
        bound = one.flop / machine.product / machine.cores
        for key, value in {**middle, "flop": one.flop, "bound": bound}.items():
            sums[key] += value
        lines.append(
            f"| {stage} | {one.why} | {one.flop / GIGA:.0f} | {one.moved / GIGA:.1f} "
            f"| {bound:.2f} | {one.moved / machine.copy / machine.cores:.2f} "
            f"| {middle['cpu']:.2f} | {bound * machine.cores / middle['cpu']:.0%} "
            f"| {middle['main']:.2f} | {middle['seconds']:.2f} |"
        )
    lines += [
        f"| all | | {sums['flop'] / GIGA:.0f} | | {sums['bound']:.2f} | | {sums['cpu']:.2f} "
        f"| {sums['bound'] * machine.cores / sums['cpu']:.0%} | {sums['main']:.2f} "
        f"| {sums['seconds']:.2f} |",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OPD_RAY_DATA", "data")))
    arguments = parser.parse_args()
    from opd_ray.models.pairs.smollm2 import pair_folder

    pair = pair_folder()
    config = AutoConfig.from_pretrained(pair / "student")
    dtype = getattr(torch, arguments.dtype)
    machine = measure_machine(dtype, config.hidden_size, config.intermediate_size)
    turns: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder, "plan.json")
        settings = {
            "pair": str(pair),
            "folder": folder,
            "data": str(arguments.data),
            "threads": machine.cores,
            "dtype": arguments.dtype,
        }
        plan.write_text(json.dumps(settings))
        for stage in ("rollout", "teacher", "trainer"):
            command = [sys.executable, str(HERE / "roofline_stage.py"), stage, str(plan)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{stage} failed:\n{done.stderr[-3000:]}")
            turns[stage] = json.loads(Path(folder, f"{stage}.json").read_text())
            print(stage, turns[stage], flush=True)
    # What the later stages were given is what the last turn wrote.
    counts = {stage: found[-1] for stage, found in turns.items()}
    sizes = [Sizes.of(pair / name) for name in ("student", "teacher")]
    work = works(counts, *sizes, width=dtype.itemsize)
    text = report(machine, turns, work, arguments.dtype)
    file = RESULTS / f"roofline_{arguments.dtype}.md"
    file.write_text(text)
    print(f"\n{text}\nwritten to {file}")


if __name__ == "__main__":
    main()
