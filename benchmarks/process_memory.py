"""Memory of this process as Linux counts it, for the benchmarks."""

from __future__ import annotations

import ctypes
from pathlib import Path

MIB = 2**20


def process_memory(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def settle() -> int:
    """Give freed memory back and start the peak afresh; returns the bytes that are still held."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return process_memory("VmRSS")
