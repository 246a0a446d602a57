"""Weights from GPU to GPU by vLLM's own NCCL engine: the trainer's end.

Written against the source of vLLM 0.32 (``vllm.distributed.weight_transfer.nccl_engine``); it has
never been run on a GPU. The workers' end needs nothing but ``sync.backend = nccl``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import ray
import torch
from torch import nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
)
from vllm.utils.network_utils import get_open_port

from actors.weights.chunks import named_weights


class NamedWeightSource(WeightSource):
    """The weights of :func:`named_weights`; vLLM's own source omits a tied head.

    Args: as :func:`named_weights`.
    """

    def __init__(
        self, model: nn.Module, full: Callable[[nn.Parameter], torch.Tensor] = nn.Parameter.detach
    ) -> None:
        self._model, self._full = model, full

    def metadata(self) -> list[ParamMeta]:
        """Names, types and whole shapes; the first call iterates once, on every rank."""
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return named_weights(self._model, self._full)

    @cached_property
    def _metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]


class RolloutSyncClient:
    """vLLM's ``VLLMWeightSyncClient`` for several independent engines in rollout actors.

    vLLM's Ray client gives all its handles one rank offset, which suits the replicas of one engine;
    here every engine counts its workers from 0, so each gets an offset of its own.

    Args:
        handles: of the rollout actors.
        tensor_parallel_size: workers of each engine.
    """

    def __init__(self, handles: Sequence[Any], tensor_parallel_size: int) -> None:
        self._handles = list(handles)
        self._tensor_parallel_size = tensor_parallel_size
        self.version = 0

    @property
    def world_size(self) -> int:
        """Ranks of the transfer group: the sending trainer and every worker."""
        return 1 + len(self._handles) * self._tensor_parallel_size

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every worker join the group; returns when all have."""
        ray.get(
            [
                handle.init_weight_transfer.remote(
                    init_info | {"rank_offset": 1 + engine * self._tensor_parallel_size}
                )
                for engine, handle in enumerate(self._handles)
            ]
        )

    def start_weight_update(self) -> None:
        ray.get([handle.start_weight_update.remote() for handle in self._handles])

    def update_weights(self, update_info: Any) -> None:
        ray.get([handle.receive_weights.remote(update_info) for handle in self._handles])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update under :attr:`version` (vLLM's trainer engine passes none)."""
        ray.get([handle.finish_weight_update.remote(self.version) for handle in self._handles])


class NcclSender:
    """Sends a trained model's weights to every rollout engine; one on each trainer rank.

    Args:
        model: on a GPU.
        full: makes a whole GPU tensor of a parameter; see :func:`named_weights`.
        rank: of this trainer process. Rank 0 sends; the others only take part in ``full``.
        handles: of the rollout actors, started with ``sync.backend = nccl``.
        tensor_parallel_size: of their engines.
    """

    def __init__(
        self,
        model: nn.Module,
        full: Callable[[nn.Parameter], torch.Tensor],
        rank: int,
        handles: Sequence[Any],
        tensor_parallel_size: int,
    ) -> None:
        self._client = RolloutSyncClient(handles, tensor_parallel_size)
        self._engine = NCCLTrainerWeightTransferEngine.trainer_init(
            NCCLTrainerInitInfo(
                master_address=ray.util.get_node_ip_address(),
                master_port=get_open_port(),
                world_size=self._client.world_size,
                rank=rank,
            ),
            client=self._client,
            source=NamedWeightSource(model, full),
        )

    def send(self, version: int) -> None:
        """Replace every engine's weights; call on all ranks. Returns when they are in use."""
        self._client.version = version
        self._engine.send_weights()

    def shutdown(self) -> None:
        """Leave the transfer group."""
        self._engine.shutdown()
