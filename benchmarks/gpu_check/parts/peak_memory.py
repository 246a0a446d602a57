"""A small form of ``benchmarks/peak_memory.py``: the four losses, of all rows and of a tenth."""

from __future__ import annotations

import torch
from head_losses import LOSSES
from memory_step import StudentStep, Text, meter_of

from gpu_check.findings import Findings
from opd_ray.models.shape import known_config

STUDENT, TEACHER_HIDDEN = "Qwen/Qwen2.5-1.5B-Instruct", 5120
RHOS = (1.0, 0.1)
# The allocator rounds, and operations take workspaces, which nobody counts.
MORE_THAN_COUNTED = 1.15


def run(findings: Findings, device: str, argument: str) -> None:
    """The student's own width and vocabulary on a GPU, a small one on a CPU; fewer layers."""
    described = known_config(STUDENT)
    assert described is not None
    on_gpu = device == "cuda"
    layers, text, teacher_hidden = 4, Text(512, 2048), TEACHER_HIDDEN
    if not on_gpu:
        described |= {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 1024}
        layers, text, teacher_hidden = 2, Text(32, 256), 320
        described |= {"num_attention_heads": 4}
    where = torch.device(device)
    step = StudentStep(described, teacher_hidden, text, where, layers=layers)
    step.run(LOSSES["fused"], 0.1)  # libraries take workspaces at their first call
    measured: dict[tuple[str, float], int] = {}
    rows, loss_of_all = [], []
    for name, loss in LOSSES.items():
        cells = [name]
        for rho in RHOS:
            found = step.measure(loss, rho, meter_of(where))
            assert found.measured is not None
            assert found.loss is not None
            measured[name, rho] = found.measured
            cells += [f"{found.measured / 1e9:.3f}", f"{found.counted / 1e9:.3f}"]
            if rho == 1.0:
                loss_of_all.append(found.loss)
            if on_gpu:
                more = found.measured / found.counted
                what = f"allocated / counted, {name}, rho = {rho:g}"
                findings.check(what, more, MORE_THAN_COUNTED)
        rows.append([*cells, f"{found.seconds:.2f}"])
    findings.table(["loss", "rho = 1, GB", "counted", "rho = 0.1, GB", "counted", "s at 0.1"], rows)
    spread = max(loss_of_all) / min(loss_of_all) - 1
    findings.check("the four losses differ by", spread, 2e-2)
    if on_gpu:
        share = measured["fused", 1.0] / measured["chunks kept", 1.0]
        findings.check("memory of the fused loss beside kept chunks", share, 0.7)
