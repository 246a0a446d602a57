"""How the ranks of a trainer meet: at a store that listens where rank 0's node is known, alone."""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Between two collectives of one step lies at most the slowest rank's forward and backward pass.
_TIMEOUT = timedelta(minutes=30)
_LOOPBACK = "lo"


def meet(rank: int, world_size: int, master: tuple[str, int], device: torch.device) -> None:
    """Meet all ranks, for DeepSpeed too; over NCCL on GPUs, over gloo on CPUs.

    A Ray actor sees its own GPU only, so the local rank is always 0.
    """
    host, port = master
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": device.type,
    }
    if ipaddress.ip_address(host).is_loopback:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, _LOOPBACK)
    import deepspeed

    # DeepSpeed compiles this op for 40 s at first use, and has one use for it: sharded inference.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    on_gpu = device.type == "cuda"
    backend = "nccl" if on_gpu else "gloo"
    if not dist.is_initialized():  # else this process has met the others for an earlier engine
        dist.init_process_group(
            backend,
            store=store(rank, world_size, master),
            rank=rank,
            world_size=world_size,
            timeout=_TIMEOUT,
            # As DeepSpeed would: a rank alone has nobody to meet.
            device_id=torch.device("cuda", 0) if on_gpu and world_size > 1 else None,
        )
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=_TIMEOUT)


def store(rank: int, world_size: int, master: tuple[str, int]) -> Any:
    """The store of rank 0. Left to itself it would listen at every address of the machine."""
    host, port = master
    listening = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server(master, family=family).detach()
    return dist.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        world_size,
        is_master=rank == 0,
        timeout=_TIMEOUT,
        master_listen_fd=listening,
    )
