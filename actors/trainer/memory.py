"""The most memory this process has held."""

from __future__ import annotations

import resource
import sys

import torch

# Linux counts the high-water mark of resident memory in KiB, macOS in bytes.
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_memory_bytes(device: torch.device) -> int:
    """High-water mark in bytes: allocated on the GPU, or resident in host memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
