"""The parts of the check, in the order in which they run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Older ones lack what the parts call; docs/gpu.md says which have been tried.
OLDEST = {"torch": "2.6", "transformers": "5.0", "deepspeed": "0.18", "vllm": "0.32", "ray": "2.50"}

_PARTS = "gpu_check.parts"
_MODEL = ("torch", "transformers")
_DEEPSPEED = (*_MODEL, "deepspeed", "omegaconf")
_ALL = (*_DEEPSPEED, "ray", "vllm")
_LORA = (*_ALL, "peft")


@dataclass(frozen=True)
class Part:
    """Something that works or not."""

    name: str
    says: str  # what it shows, in a few words
    module: str  # has ``run(findings, device, argument)``
    argument: str = ""
    needs: tuple[str, ...] = _MODEL  # packages
    gpus: int = 1  # at least
    programs: tuple[str, ...] = ()  # that it starts
    not_on_cpus: str = ""  # why it has nothing to show there
    seconds: int = 120  # after which it is ended


# Tells what the machine is; without it there is no other.
MACHINE = Part("machine", "PyTorch, GPU, driver", f"{_PARTS}.machine", needs=("torch",), gpus=0)

PARTS = (
    Part(
        "divergences", "losses, gradients and exact scores against float64", f"{_PARTS}.divergences"
    ),
    Part(
        "packed_attention",
        "texts packed in one row against one at a time",
        f"{_PARTS}.packed_attention",
    ),
    Part("hf_teacher", "a Hugging Face teacher against its plain model", f"{_PARTS}.hf_teacher"),
    Part("peak_memory", "what selection and the loss save of memory", f"{_PARTS}.peak_memory"),
    *(
        Part(
            f"zero_{stage}",
            f"DeepSpeed steps in bfloat16 at ZeRO {stage} against plain autograd",
            f"{_PARTS}.deepspeed_steps",
            str(stage),
            needs=_DEEPSPEED,
        )
        for stage in range(4)
    ),
    Part(
        "zero_offload",
        "the same at ZeRO 3, weights and optimizer in main memory",
        f"{_PARTS}.deepspeed_steps",
        "offload",
        needs=_DEEPSPEED,
        programs=("c++", "ninja"),  # DeepSpeed compiles its optimizer
        not_on_cpus="everything is in main memory there",
        seconds=300,
    ),
    Part(
        "vllm_teacher",
        "a teacher in a vLLM engine against its plain model",
        f"{_PARTS}.vllm_teacher",
        needs=_ALL,
        seconds=180,
    ),
    Part(
        "cuda_graphs",
        "a rollout engine with CUDA graphs against one without",
        f"{_PARTS}.cuda_graphs",
        needs=_ALL,
        seconds=180,
    ),
    Part(
        "engine_sleep",
        "a rollout engine that drops its weights, sleeps, and gets them again",
        f"{_PARTS}.engine_sleep",
        "whole",
        needs=_ALL,
        seconds=180,
    ),
    Part(
        "adapter_sleep",
        "the same below an adapter, with weights kept",
        f"{_PARTS}.engine_sleep",
        "adapter",
        needs=_LORA,
        seconds=180,
    ),
    Part(
        "demo",
        "a run whose rollouts are written on the GPU",
        f"{_PARTS}.short_run",
        "rollouts",
        needs=_ALL,
        seconds=240,
    ),
    Part(
        "demo_lora",
        "a run of an adapter, which the rollout engine adds itself",
        f"{_PARTS}.short_run",
        "lora",
        needs=_LORA,
        seconds=240,
    ),
    Part(
        "demo_turns",
        "a run whose roles take turns on one GPU",
        f"{_PARTS}.short_run",
        "turns",
        needs=_ALL,
        seconds=300,
    ),
    Part(
        "sync_ipc",
        "the same with weights that stay on the GPU, by CUDA IPC",
        f"{_PARTS}.short_run",
        "ipc",
        needs=_ALL,
        not_on_cpus="one process opens another's memory on a GPU",
        seconds=300,
    ),
    Part(
        "demo_teacher",
        "a run with the teacher on a GPU of its own, too",
        f"{_PARTS}.short_run",
        "teacher",
        needs=_ALL,
        gpus=2,
        seconds=240,
    ),
    Part(
        "demo_trainer",
        "a run with the trainer on a GPU of its own, too",
        f"{_PARTS}.short_run",
        "trainer",
        needs=_ALL,
        gpus=2,
        seconds=240,
    ),
    Part(
        "sync_nccl",
        "weights from GPU to GPU by NCCL",
        f"{_PARTS}.short_run",
        "nccl",
        needs=_ALL,
        gpus=2,
        seconds=240,
    ),
    Part(
        "demo_shared",
        "a run whose teacher has a share of the rollouts' GPU",
        f"{_PARTS}.short_run",
        "shared",
        needs=_ALL,
        gpus=2,
        seconds=240,
    ),
)


def missing(part: Part) -> list[str]:
    """The packages that a part needs and that are not here, or older than it takes; programs."""
    programs = (name for name in part.programs if shutil.which(name, path=search_path()) is None)
    return [*_lacks(part.needs), *(f"the program {name} (not in PATH)" for name in programs)]


def search_path() -> str:
    """PATH of the parts: what is installed beside Python comes first, activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def versions(packages: Collection[str] = (*_ALL, "peft", "accelerate", "numpy")) -> dict[str, str]:
    """Those of the packages that are installed."""
    found = {package: _version(package) for package in packages}
    return {package: number for package, number in found.items() if number is not None}


def _lacks(packages: Collection[str]) -> Iterator[str]:
    for package in packages:
        found, oldest = _version(package), OLDEST.get(package)
        if found is None:
            yield f"{package}{f' {oldest} or newer' if oldest else ''} (not installed)"
        elif oldest and _numbers(found) < _numbers(oldest):
            yield f"{package} {oldest} or newer ({found} is installed)"


def _version(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):  # as vLLM's build for CPUs is called
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, ``2.13.0+cpu`` as (2, 13, 0)."""
    numbers = []
    for piece in text.split("+")[0].split("."):
        digits = piece[: len(piece) - len(piece.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
