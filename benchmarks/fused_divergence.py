"""Time and memory of the fused divergence; writes results/fused_divergence.md.

    python benchmarks/fused_divergence.py [--repeats 5] [--shapes 1024,576,49152 512,1024,151936]

Reverse KL from hidden rows and heads of student and teacher to the gradients of the student's
hidden rows and head, three ways: `naive` (whole logits, log-softmax, KL, autograd; the teacher
without gradient), `fused` (linear_divergence with its default chunks), and `bare` (the four matrix
products alone, into tensors that exist already). Each runs in a process of its own; the repeats
take turns, so that a busy machine slows all three; ratios are of medians. CPU time is user and
system time of all threads, steadier than the clock where others use the machine too.

Memory is the process's peak above what it held with its inputs made, first all of it, then without
the two gradients that any implementation has to hand back. Needs Linux (/proc).
Targets: time at most 0.7 of naive and 1.35 of bare; memory beyond the gradients at most 0.15 of
naive's, and flat in N.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from page import publish
from process_memory import MIB, process_memory
from torch import Tensor
from worker import Worker

from opd_ray.divergence import HiddenTarget, linear_divergence

RESULTS = Path(__file__).parent / "results" / "fused_divergence.md"
VARIANTS = ("naive", "fused", "bare")
FLAT_CHUNK = 128  # rows


@dataclass(frozen=True)
class Shape:
    """N rows, hidden size D of both models, V tokens."""

    rows: int
    hidden: int
    vocab: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        return cls(*(int(part) for part in text.split(",")))


@dataclass(frozen=True)
class Run:
    wall: float  # seconds
    cpu: float  # seconds
    loss: float
    peak: int  # bytes above the inputs, so far
    gradients: int  # bytes


class Inputs:
    """Random hidden rows and heads, made in place so that making them leaves no peak behind."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        torch.manual_seed(0)

        def normal(rows: int, scale: float = 1.0) -> Tensor:
            return torch.empty(rows, shape.hidden, dtype=dtype).normal_().mul_(scale)

        scale = shape.hidden**-0.5
        self.hidden_ND = normal(shape.rows).requires_grad_()
        self.head_VD = normal(shape.vocab, scale).requires_grad_()
        self.teacher_ND = normal(shape.rows)
        self.teacher_VD = normal(shape.vocab, scale)


def naive(inputs: Inputs) -> Callable[[], float]:
    """Plain autograd over whole logits; half-precision logits are taken to float32, as is usual."""

    def run() -> float:
        log_p_NV = F.log_softmax((inputs.hidden_ND @ inputs.head_VD.T).float(), -1)
        with torch.no_grad():
            log_q_NV = F.log_softmax((inputs.teacher_ND @ inputs.teacher_VD.T).float(), -1)
        loss = F.kl_div(log_q_NV, log_p_NV, reduction="sum", log_target=True)
        loss.backward()
        return loss.item()

    return run


def fused(inputs: Inputs, chunk_size: int | None = None) -> Callable[[], float]:
    """The product's own."""
    target = HiddenTarget(inputs.teacher_ND, inputs.teacher_VD)

    def run() -> float:
        output = linear_divergence(inputs.hidden_ND, inputs.head_VD, target, chunk_size=chunk_size)
        output.loss.backward()
        return output.loss.item()

    return run


def bare(inputs: Inputs) -> Callable[[], float]:
    """The four products that neither can do without."""
    hidden_ND, head_VD = inputs.hidden_ND.detach(), inputs.head_VD.detach()
    logits_NV = hidden_ND.new_empty(len(hidden_ND), len(head_VD))
    grad_hidden_ND, grad_head_VD = torch.empty_like(hidden_ND), torch.empty_like(head_VD)

    def run() -> float:
        torch.mm(inputs.teacher_ND, inputs.teacher_VD.T, out=logits_NV)
        torch.mm(hidden_ND, head_VD.T, out=logits_NV)
        torch.mm(logits_NV, head_VD, out=grad_hidden_ND)
        torch.mm(logits_NV.T, hidden_ND, out=grad_head_VD)
        return 0.0

    return run


def work(
    pipe: Connection, variant: str, shape: Shape, dtype: torch.dtype, chunk_size: int | None
) -> None:
    """Make the inputs, then run once for every word received, answering with a Run."""
    make = {"naive": naive, "bare": bare, "fused": partial(fused, chunk_size=chunk_size)}[variant]
    make(Inputs(Shape(2, 8, 16), dtype))()  # loads the libraries, whose memory is not in question
    inputs = Inputs(shape, dtype)
    run = make(inputs)
    held = process_memory("VmRSS")
    while pipe.recv():
        inputs.hidden_ND.grad = inputs.head_VD.grad = None
        wall, cpu = time.perf_counter(), time.process_time()
        loss = run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        gradients = 0 if variant == "bare" else inputs.hidden_ND.nbytes + inputs.head_VD.nbytes
        pipe.send(Run(wall, cpu, loss, process_memory("VmHWM") - held, gradients))


def compare(shape: Shape, dtype: torch.dtype, repeats: int) -> dict[str, list[Run]]:
    """All variants in turns, after one run each that is not counted."""
    workers = {variant: Worker(work, variant, shape, dtype, None) for variant in VARIANTS}
    runs: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
    for repeat in range(repeats + 1):
        for variant, worker in workers.items():
            run = worker.ask()
            if repeat > 0:
                runs[variant].append(run)
    for worker in workers.values():
        worker.close()
    losses = runs["naive"][0].loss, runs["fused"][0].loss
    if abs(losses[1] / losses[0] - 1) > 0.01:
        raise RuntimeError(f"naive and fused disagree: losses {losses[0]:g} and {losses[1]:g}")
    return runs


def rows_of(shape: Shape, dtype: torch.dtype, runs: dict[str, list[Run]]) -> list[str]:
    """The table's rows for one shape and dtype."""

    def median(variant: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in runs[variant])

    def memory(variant: str) -> tuple[float, float]:
        last = runs[variant][-1]
        return last.peak / MIB, (last.peak - last.gradients) / MIB

    name = f"{shape.rows}, {shape.hidden}, {shape.vocab} | {str(dtype).removeprefix('torch.')}"
    lines = []
    for variant in VARIANTS:
        cells = [name, variant]
        for field in ("wall", "cpu"):
            value = median(variant, field)
            to_naive, to_bare = (value / median(other, field) for other in ("naive", "bare"))
            cells += [f"{value:.2f}", f"{to_naive:.2f}", f"{to_bare:.2f}"]
        if variant == "bare":
            cells += ["", "", "", ""]
        else:
            for own, whole in zip(memory(variant), memory("naive"), strict=True):
                cells += [f"{own:.0f}", f"{own / whole:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def flat_rows(shape: Shape) -> list[str]:
    """Memory of the fused divergence for one chunk size and growing N."""
    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (shape.rows // 2, shape.rows, 2 * shape.rows, 4 * shape.rows):
            worker = Worker(work, "fused", replace(shape, rows=rows), dtype, FLAT_CHUNK)
            run = worker.ask()
            worker.close()
            beyond = (run.peak - run.gradients) / MIB
            name = str(dtype).removeprefix("torch.")
            lines.append(f"| {name} | {rows} | {run.peak / MIB:.0f} | {beyond:.0f} |")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=Shape.parse,
        default=[Shape(1024, 576, 49152), Shape(512, 1024, 151936)],
        metavar="N,D,V",
    )
    args = parser.parse_args()
    lines = [
        "# Fused divergence against naive autograd and the bare matrix products",
        "",
        f"`python benchmarks/fused_divergence.py --repeats {args.repeats}`: median of "
        f"{args.repeats} runs in turns, seconds and MiB; {torch.get_num_threads()} thread(s) of "
        f"{os.cpu_count()} CPUs ({platform.machine()}), torch {torch.__version__}.",
        "`extra`: peak above the inputs; `beyond`: of that, all but the two gradients.",
        "",
        "| N, D, V | dtype | variant | wall | / naive | / bare | CPU | / naive | / bare "
        "| extra | / naive | beyond | / naive |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in args.shapes:
        for dtype in (torch.float32, torch.bfloat16):
            lines += rows_of(shape, dtype, compare(shape, dtype, args.repeats))
            print("\n".join(lines[-len(VARIANTS) :]), flush=True)
    lines += [
        "",
        f"Memory of the fused divergence as N grows, {FLAT_CHUNK} rows to a chunk, at "
        f"D = {args.shapes[0].hidden}, V = {args.shapes[0].vocab}:",
        "",
        "| dtype | N | extra | beyond |",
        "|---|---|---|---|",
        *flat_rows(args.shapes[0]),
    ]
    publish("\n".join(lines) + "\n", RESULTS)


if __name__ == "__main__":
    main()
