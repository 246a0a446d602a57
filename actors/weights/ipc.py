"""Weights within each GPU, by vLLM's own engine for CUDA IPC: for roles that take turns on it.

A trainer rank opens its memory to the workers on its own GPU, which read what they need from there;
nothing goes over a network or through main memory. NCCL refuses two processes on one GPU.

Written against the source of vLLM 0.32 (``vllm.distributed.weight_transfer.ipc_engine``); it has
never been run on a GPU. The driver imports this file, so vLLM is imported in functions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import ray

from actors.weights.transport import NamedWeights, WeightTransport
from actors.weights.vllm_client import RolloutSyncClient, weight_source

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import WeightSource


class CudaIpc(WeightTransport):
    """Every rank shows its GPU's workers the same weights; the driver only says when."""

    vllm_backend = "ipc"
    from_trainers_memory = True
    whole_on_every_rank = True

    def deliver(self, version: int, chunks: Sequence[ray.ObjectRef] | None) -> None:
        self.trainers.call_transport("send", version, self.rollouts.handles)

    @classmethod
    def trainer_end(cls, weights: NamedWeights, rank: int, chunk_bytes: int) -> IpcSender:
        return IpcSender(weights, rank, chunk_bytes)


@dataclass
class IpcSender:
    """Shows the weights to every rollout engine on this rank's GPU; one on each trainer rank."""

    weights: NamedWeights  # whole, on a GPU, on every rank
    rank: int  # of this trainer process. Rank 0 speaks with the engines for all
    chunk_bytes: int  # of the buffer that is filled again and again

    def send(self, version: int, handles: Sequence[Any]) -> None:
        """Replace every engine's weights; call on all ranks. Returns when they are in use.

        Args:
            version: carried by every later rollout.
            handles: of the rollout actors. There is nothing to be joined beforehand, so they may
                be others each time.
        """
        from vllm.distributed.weight_transfer.ipc_engine import (
            IPCTrainerInitInfo,
            IPCTrainerWeightTransferEngine,
        )

        # Packed, or the whole model would lie on the GPU a second time where ranks gather it.
        engine = IPCTrainerWeightTransferEngine.trainer_init(
            IPCTrainerInitInfo(
                rank=self.rank, packed=True, packed_buffer_size_bytes=self._buffer_bytes
            ),
            client=RolloutSyncClient(handles, version),
            source=self._source,
        )
        engine.send_weights()

    @cached_property
    def _source(self) -> WeightSource:
        return weight_source(self.weights)

    @cached_property
    def _buffer_bytes(self) -> int:
        """As asked, or as much as the largest tensor takes: vLLM cuts none in two."""
        sizes = [prod(one.shape) * one.dtype.itemsize for one in self._source.metadata()]
        return max(self.chunk_bytes, *sizes)
