"""What a cluster offers: CPUs, GPUs and memory, node by node."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """One machine."""

    name: str
    cpus: float
    memory_bytes: int
    gpus: int = 0
    gpu_memory_bytes: int | None = None  # of one GPU; None: unknown

    @property
    def cores(self) -> int:
        """CPUs in whole threads, at least one."""
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class Cluster:
    """All machines."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)


def this_machine(num_cpus: int | None = None) -> Cluster:
    """The machine this process runs on; ``num_cpus`` overrides the count of usable cores."""
    gpus, gpu_memory = _gpus()
    cpus = num_cpus if num_cpus is not None else len(os.sched_getaffinity(0))
    return Cluster((Node("local", cpus, total_memory(), gpus, gpu_memory),))


def from_ray_nodes(nodes: Sequence[Mapping[str, Any]]) -> Cluster:
    """The living nodes of a running cluster, as ``ray.nodes()`` lists them.

    Each has its address for a name; further ones at the same address are numbered from 2.
    """
    found = []
    at = Counter[str]()
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            memory = int(has.get("memory", 0) + has.get("object_store_memory", 0))
            gpus = int(has.get("GPU", 0))
            address = node["NodeManagerAddress"]
            at[address] += 1
            name = address if at[address] == 1 else f"{address} ({at[address]})"
            found.append(Node(name, has.get("CPU", 0.0), memory, gpus))
    return Cluster(tuple(found))


def total_memory() -> int:
    """Bytes of main memory this process may use: the machine's, or a container's lower limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return machine if text == "max" else min(machine, int(text))


def available_memory() -> int:
    """Bytes that new processes can take now, on this machine or within its container's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return min(free, total_memory())


def _gpus() -> tuple[int, int | None]:
    """GPUs this process may use and the memory of the smallest, as nvidia-smi tells."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return 0, None  # no NVIDIA driver on this machine
    memory = [int(line) << 20 for line in answer.stdout.split()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(memory) if visible is None else len([gpu for gpu in visible.split(",") if gpu])
    return count, min(memory) if count else None


def gigabytes(nbytes: float) -> str:
    """Bytes for people: "1.53 GB", or "12.4 MB" below one hundredth of that."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"
