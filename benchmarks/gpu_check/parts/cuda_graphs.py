"""Rollouts by vLLM with CUDA graphs and without: the same tokens, scores and how many a second."""

from __future__ import annotations

import gc
import time

import torch

from gpu_check.findings import Findings
from gpu_check.rollouts import Rollouts, compare, demo_engine, write


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; on a CPU, where there are no graphs, both are the same engine."""
    graphs = _write(findings, device, False)
    eager = _write(findings, device, True)
    if device != "cuda":
        findings.figure("graphs", "none on a CPU: both engines are the same")
    compare(findings, graphs, eager)


def _write(findings: Findings, device: str, eager: bool) -> Rollouts:
    """All rollouts, greedily, by an engine of its own."""
    name = "without graphs" if eager else "with graphs"
    started = time.perf_counter()
    engine = demo_engine(device, eager=eager)
    findings.figure(f"start {name}", time.perf_counter() - started, "s")
    write(engine, device)  # the first call compiles
    found, tokens_per_second = write(engine, device)
    findings.figure(f"tokens/s {name}", tokens_per_second)
    del engine
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return found
