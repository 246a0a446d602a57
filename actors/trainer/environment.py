"""The environment variables that a trainer's process must be started with."""

from __future__ import annotations

import os

from actors.malloc import KEEP_FREED_MEMORY
from opd_ray.config.schema import TrainerSettings


def trainer_environment(trainer: TrainerSettings) -> dict[str, str]:
    """Variables for the process of one rank, for Ray's ``runtime_env={"env_vars": ...}``.

    OpenMP reads its number of threads when its library loads, DeepSpeed its accelerator when it is
    imported, which transformers does on its own account.
    """
    environment = {
        "OMP_NUM_THREADS": str(trainer_threads(trainer)),
        "DS_ACCELERATOR": "cuda" if trainer.gpus_per_rank else "cpu",
        # A bar for every rank that loads or saves a model; set the variable to 0 to see them.
        "HF_HUB_DISABLE_PROGRESS_BARS": os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        # DeepSpeed calls collectives by names that torch renamed, hundreds of times a step.
        "PYTHONWARNINGS": "ignore::FutureWarning:torch.distributed.c10d_logger",
    }
    if not trainer.gpus_per_rank:
        environment |= KEEP_FREED_MEMORY
    return environment


def trainer_threads(trainer: TrainerSettings) -> int:
    """CPU threads of a rank; one where no placement plan has filled them in."""
    return trainer.threads or 1
