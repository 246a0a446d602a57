"""What the machine is, as PyTorch sees it, and whether a matrix product comes out right there."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from gpu_check.findings import Findings
from gpu_check.part import versions

GPUS = "GPUs"
WHY_NONE = "why there is no GPU"


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; ``device`` may be ``auto``."""
    findings.figure("Python", platform.python_version())
    for package, number in versions().items():
        findings.figure(package, number)
    findings.figure("CPU cores", len(os.sched_getaffinity(0)))
    findings.figure("main memory", _main_memory_gb(), "GB")
    findings.figure("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    findings.figure(GPUS, count)
    if reason := _no_gpu(count):
        findings.figure(WHY_NONE, reason)
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        about = f"{properties.name}, {properties.total_memory / 1e9:.1f} GB, "
        about += f"capability {properties.major}.{properties.minor}"
        findings.figure(f"GPU {index}", about)
    if count:
        findings.figure("CUDA of PyTorch", str(torch.version.cuda or torch.version.hip))
        findings.figure("driver", _driver())
        findings.figure("bfloat16", str(torch.cuda.is_bf16_supported()))
        free, total = torch.cuda.mem_get_info()
        findings.figure("memory that others hold on GPU 0", (total - free) / 1e9, "GB")
    where = "cuda" if count and device != "cpu" else "cpu"
    left = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64) % 7
    product = (left.to(where) @ left.to(where)).cpu()
    findings.check("a product of whole numbers", float((product - left @ left).abs().max()), 0.0)


def _no_gpu(count: int) -> str:
    if count:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is a build for CPUs: install one for GPUs"
    if visible is not None and visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides them all: unset it"
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/kfd").exists():
        return "this machine shows no GPU: neither /dev/nvidiactl nor /dev/kfd is there"
    return "PyTorch finds none although there is a driver: is it too old for this build of PyTorch?"


def _driver() -> str:
    file = Path("/proc/driver/nvidia/version")
    if not file.is_file():
        return "unknown"
    return file.read_text().splitlines()[0].removeprefix("NVRM version: ").strip()


def _main_memory_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
