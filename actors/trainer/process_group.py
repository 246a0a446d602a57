"""Joins this process to the others of the trainer, through DeepSpeed."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

# Between two collectives of one step lies at most the slowest rank's forward and backward pass.
_TIMEOUT = timedelta(minutes=30)


def join_process_group(
    rank: int, world_size: int, master_address: str, master_port: int, *, on_gpu: bool
) -> None:
    """Meet all ranks at rank 0's address; over NCCL on GPUs, over gloo on CPUs.

    A Ray actor sees its own GPU only, so the local rank is always 0.
    """
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(master_port),
        "DS_ACCELERATOR": "cuda" if on_gpu else "cpu",
    }
    import deepspeed

    # DeepSpeed compiles this op for 40 s at first use, and has one use for it: sharded inference.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "nccl" if on_gpu else "gloo", auto_mpi_discovery=False, timeout=_TIMEOUT
    )


def all_ranks(yes: bool, device: torch.device) -> bool:
    """Whether every rank says yes (a collective)."""
    answer = torch.tensor(int(yes), device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    return bool(answer)
