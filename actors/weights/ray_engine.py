"""vLLM's end of a weight transfer in chunks: a backend of its weight-transfer interface.

The chunks arrive as arrays. On the way from the trainer they lie in Ray's object store; the rollout
actor fetches them, so that neither the engine nor its workers need to know of Ray.
Follows ``vllm.distributed.weight_transfer.base.WeightTransferEngine`` and the order of calls of
vLLM's own NCCL engine (start: layerwise reload on; update: load; finish: layerwise reload off).
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform

from actors.weights.chunks import WeightChunk, unpack


@dataclass
class ChunkInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ChunkUpdateInfo(WeightTransferUpdateInfo):
    """One call of ``update_weights`` carries one chunk."""

    chunk: WeightChunk


class ChunkWeightTransferEngine(WeightTransferEngine[ChunkInitInfo, ChunkUpdateInfo]):
    """Loads chunks of named tensors into the model, layer by layer, re-packing where vLLM packs."""

    init_info_cls = ChunkInitInfo
    update_info_cls = ChunkUpdateInfo

    def init_transfer_engine(self, init_info: ChunkInitInfo) -> None:
        """No connection is needed."""

    def start_weight_update(self) -> None:
        """Detach the model's tensors, so that arriving ones are collected layer by layer."""
        if current_platform.is_cpu():
            # vLLM re-packs a mixture's experts for its kernels on CPUs only where a layer has no
            # kernel yet, and would go on with them as they arrived.
            for layer in self.model.modules():
                method = getattr(layer, "quant_method", None)
                if isinstance(method, FusedMoEMethodBase):
                    method.moe_kernel = None
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ChunkUpdateInfo) -> None:
        """Load one chunk."""
        self.model.load_weights(unpack(update_info.chunk))

    def finish_weight_update(self) -> None:
        """Put the model together again.

        Raises:
            RuntimeError: a layer with weights received none: vLLM would keep its old ones. The
                engine is unusable afterwards.
        """
        missing = [
            name
            for name, layer in self.model.named_modules()
            if any(parameter is not None for parameter in layer._parameters.values())
            and not is_deferred_attention_layer(layer)
            and get_layerwise_info(layer).can_load()
            # Not by elements: a worker whose rows of the vocabulary are all padding takes none.
            and not get_layerwise_info(layer).loaded_weights
        ]
        if missing:
            raise RuntimeError(
                f"weight update without weights for {', '.join(missing)}: these layers would keep "
                "their old values. Send every name that actors.weights.chunks.named_weights gives, "
                "a tied head too."
            )
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to release."""
