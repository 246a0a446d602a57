"""The parts of the check, in the order in which they run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

# Older ones lack what the parts call; docs/gpu.md says which have been tried.
OLDEST = {"torch": "2.6", "transformers": "5.0", "deepspeed": "0.18", "vllm": "0.32", "ray": "2.50"}

_PARTS = "gpu_check.parts"
_MODEL = ("torch", "transformers")
_DEEPSPEED = (*_MODEL, "deepspeed", "omegaconf")
_ALL = (*_DEEPSPEED, "ray", "vllm")


@dataclass(frozen=True)
class Part:
    """Something that works or not."""

    name: str
    says: str  # what it shows, in a few words
    module: str  # has ``run(findings, device, argument)``
    argument: str = ""
    needs: tuple[str, ...] = _MODEL  # packages
    gpus: int = 1  # at least
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
        "demo",
        "a run whose rollouts are written on the GPU",
        f"{_PARTS}.short_run",
        "rollouts",
        needs=_ALL,
        seconds=240,
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
)


def missing(part: Part) -> list[str]:
    """The packages that a part needs and that are not here, or older than it takes."""
    return list(_lacks(part.needs))


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
