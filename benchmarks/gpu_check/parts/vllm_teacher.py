"""A teacher of kind vllm against its plain model over each text."""

from __future__ import annotations

from actors.teacher.kinds.vllm import VllmTeacher
from gpu_check.findings import Findings
from gpu_check.inputs import Size
from gpu_check.parts.hf_teacher import compare, demo_teacher, settings_of
from opd_ray.config.choices import Dtype


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; of the demo's teacher."""
    path, size = demo_teacher(Size.on(device))
    # What vLLM's attention on GPUs is made for.
    dtype = Dtype.bfloat16 if device == "cuda" else Dtype.float32
    settings = settings_of(path, size, dtype, device)
    compare(findings, device, "demo", VllmTeacher(settings, sleeps=True), settings, size)
