"""What vLLM's own trainer engines need: the weights to send, and a way to the rollout actors.

The driver imports this file, so vLLM is imported in functions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray
import torch

from actors.weights.transport import NamedWeights

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource


def weight_source(weights: NamedWeights) -> WeightSource:
    """What vLLM's engine sends: all of ``weights``. Its own source omits a tied head."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class NamedWeightSource(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            """Names, types and whole shapes; the first call iterates once, on every rank."""
            return self._metadata

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return weights()

        @cached_property
        def _metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]

    return NamedWeightSource()


@dataclass
class RolloutSyncClient:
    """vLLM's ``VLLMWeightSyncClient`` for several independent engines in rollout actors."""

    handles: Sequence[Any]  # of the rollout actors
    version: int = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every worker get ready; returns when all are."""
        self._call_all("init_weight_transfer", init_info)

    def start_weight_update(self) -> None:
        self._call_all("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._call_all("receive_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update under :attr:`version` (vLLM's trainer engines pass none)."""
        self._call_all("finish_weight_update", self.version)

    def _call_all(self, method: str, *args: Any) -> None:
        ray.get([handle.call_transport.remote(method, *args) for handle in self.handles])
