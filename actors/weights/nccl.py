"""Weights from GPU to GPU by vLLM's own NCCL engine.

Written against the source of vLLM 0.32 (``vllm.distributed.weight_transfer.nccl_engine``); it has
never been run on a GPU. The driver imports this file, so vLLM is imported in functions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.weights.transport import NamedWeights, WeightTransport
from actors.weights.vllm_client import RolloutSyncClient, weight_source


@dataclass
class Nccl(WeightTransport):
    """Rank 0 sends to the workers of every engine at once; the driver only says when."""

    vllm_backend = "nccl"

    def __post_init__(self) -> None:
        self._open()

    def deliver(self, version: int, chunks: Sequence[ray.ObjectRef] | None) -> None:
        if self.rollouts.handles != self._handles:  # one died, or was started again
            self._open()
        self.trainers.call_transport("send", version)

    def _open(self) -> None:
        """Have rank 0 and the workers of all engines meet."""
        self._handles = self.rollouts.handles
        workers = self.settings.tensor_parallel_size
        self.trainers.call_transport("open", self._handles, workers)

    @classmethod
    def trainer_end(cls, weights: NamedWeights, rank: int, chunk_bytes: int) -> NcclSender:
        return NcclSender(weights, rank)


@dataclass
class NcclSender:
    """Sends the weights to every rollout engine; one on each trainer rank."""

    weights: NamedWeights  # whole, on a GPU
    rank: int  # of this trainer process. Rank 0 sends; the others only take part in weights

    def open(self, handles: Sequence[Any], tensor_parallel_size: int) -> None:
        """Meet the workers of all engines; call on all ranks, before :meth:`send`.

        Again when there are other engines: they make a group anew.

        Args:
            handles: of the rollout actors.
            tensor_parallel_size: workers of each engine.
        """
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )
        from vllm.utils.network_utils import get_open_port

        self._client = NcclSyncClient(handles, tensor_parallel_size=tensor_parallel_size)
        self._engine = NCCLTrainerWeightTransferEngine.trainer_init(
            NCCLTrainerInitInfo(
                master_address=ray.util.get_node_ip_address(),
                master_port=get_open_port(),
                world_size=self._client.world_size,
                rank=self.rank,
            ),
            client=self._client,
            source=weight_source(self.weights),
        )

    def send(self, version: int) -> None:
        """Replace every engine's weights; call on all ranks. Returns when they are in use."""
        self._client.version = version
        self._engine.send_weights()


@dataclass
class NcclSyncClient(RolloutSyncClient):
    """The way to engines whose workers are ranks of one group.

    vLLM's Ray client gives all its handles one rank offset, which suits the replicas of one engine;
    here every engine counts its workers from 0, so each gets an offset of its own.
    """

    tensor_parallel_size: int = 1  # workers of each engine

    @property
    def world_size(self) -> int:
        """Ranks of the transfer group: the sending trainer and every worker."""
        return 1 + len(self.handles) * self.tensor_parallel_size

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every worker join the group; returns when all have."""
        offsets = range(1, self.world_size, self.tensor_parallel_size)
        ray.get(
            [
                handle.call_transport.remote(
                    "init_weight_transfer", init_info | {"rank_offset": offset}
                )
                for handle, offset in zip(self.handles, offsets, strict=True)
            ]
        )
