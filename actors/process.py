"""How an actor's process is set up and measured.

Environment variables, which are read when a process starts its thread pools and allocates for the
first time; its peak memory. Torch is imported in functions only: an actor sets its threads before
torch starts. Ray is not imported: trainers and teachers run without it, too.
"""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

from opd_ray.config.schema import TrainerSettings
from opd_ray.config.teacher import TeacherSettings

# Threads that spin for long take a core that another stage needs, or the half of a core that their
# own main thread would have. Threads that sleep at once make vLLM's short matrix products wait for
# them to wake up. So they spin for some microseconds and then sleep. (GNU's OpenMP reads the second
# variable, others only the first.)
OPENMP_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

# glibc gives large blocks back to the kernel when they are freed, and activations come and go in
# every layer: without these a trainer's step spends about a tenth of its time on page faults. One
# arena, as the backward pass frees in another thread what the forward pass has allocated. Not for
# rollout engines: new weights every step leave holes, and the process grows.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_ARENA_MAX": "1",
}

# Many images forbid byte code on disk. Every start then compiles what has none: of vLLM, where it
# was installed so, thousands of files, which takes longer than all the rest of its import.
BYTE_CODE = {"PYTHONDONTWRITEBYTECODE": ""}

# For the processes of a run that is to give the same bits every time (run.deterministic).
REPRODUCIBLE = {
    # Intel's library of matrix products else rounds by where in memory an array begins.
    "MKL_CBWR": "AUTO",
    # No fewer threads than were asked for, whatever else the machine does.
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
    # Sets of strings come in the same order, in code of the user's too.
    "PYTHONHASHSEED": "0",
    # What cuBLAS wants for products that round the same in every stream; nothing on CPUs.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
# vLLM's kernels that round a text alike whatever else is in the batch. They are for GPUs alone:
# its engines on CPUs do not come up with it.
BATCH_INVARIANT = {"VLLM_BATCH_INVARIANT": "1"}


def vllm_environment(threads: int) -> dict[str, str]:
    """Variables for the process of one engine, for Ray's ``runtime_env={"env_vars": ...}``.

    OpenMP reads its number of threads when its library loads. Set later, from Python, the number
    would hold for the calling thread alone, and vLLM's own kernels run in another.

    Args:
        threads: CPU threads of the engine's matrix products; 0, where no placement plan has
            filled them in, is one.
    """
    return {
        "OMP_NUM_THREADS": str(threads or 1),
        # Engine and scheduler in the actor's process: starts faster, and one step is one call.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The runner whose logits processors record the student's scores, and whose hidden states
        # the teacher reads.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # CPU workers in processes of their own (tensor parallel) share cores with the other stages;
        # pinned, several engines would sit on the same core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        # All workers of an engine are on its node: nobody else need reach them.
        "GLOO_SOCKET_IFNAME": "lo",
        **BYTE_CODE,
        # vLLM and PyTorch warn at length on every start; set these to see it.
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "PYTHONWARNINGS": os.environ.get(
            "PYTHONWARNINGS", "ignore::FutureWarning:vllm.triton_utils.dispatcher"
        ),
    }


def prepare_vllm(threads: int) -> None:
    """Set this process up for an engine; before vLLM's first import."""
    os.environ.update(vllm_environment(threads))
    # vLLM logs while it is imported, before it sets up its own logging.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    # Would overrule the configured size of the KV cache.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    import torch

    # vLLM's CPU worker forbids this later on.
    torch.set_num_threads(threads or 1)


def compute_reproducibly() -> None:
    """Have torch use kernels that round the same every time, in this process.

    Where there is none, the operation raises a RuntimeError that names it (on GPUs alone).
    """
    import torch

    torch.use_deterministic_algorithms(True)
    # Memory that nobody reads need not be the same.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def keep_to_share(share: float) -> None:
    """Let torch take no more than this share of the memory of this process's GPU."""
    import torch

    torch.cuda.set_per_process_memory_fraction(share)


def teacher_environment(settings: TeacherSettings) -> dict[str, str]:
    """Variables for the process of one replica, for Ray's ``runtime_env={"env_vars": ...}``."""
    if settings.traits.vllm_engine:
        return vllm_environment(settings.threads)
    threads = {"OMP_NUM_THREADS": str(settings.threads), **BYTE_CODE}
    return threads if settings.gpus_per_replica else threads | KEEP_FREED_MEMORY


def trainer_environment(trainer: TrainerSettings) -> dict[str, str]:
    """Variables for the process of one rank, for Ray's ``runtime_env={"env_vars": ...}``.

    OpenMP reads its number of threads when its library loads, DeepSpeed its accelerator when it is
    imported, which transformers does on its own account.
    """
    environment = {
        "OMP_NUM_THREADS": str(trainer.threads or 1),  # 0: no placement plan filled them in
        "DS_ACCELERATOR": "cuda" if trainer.gpus_per_rank else "cpu",
        # A bar for every rank that loads or saves a model; set the variable to 0 to see them.
        "HF_HUB_DISABLE_PROGRESS_BARS": os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        # DeepSpeed calls collectives by names that torch renamed, hundreds of times a step.
        "PYTHONWARNINGS": "ignore::FutureWarning:torch.distributed.c10d_logger",
        **BYTE_CODE,
    }
    if not trainer.gpus_per_rank:
        environment |= KEEP_FREED_MEMORY
    return environment


def peak_memory_bytes() -> int:
    """Most main memory that this process ever held, bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory_bytes() -> int:
    """Main memory that can be taken now, on this machine and within its container's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return free
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    # The kernel takes files that nobody reads out of memory when it is asked for.
    used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
    return max(0, min(free, int(limit.read_text()) - used))
