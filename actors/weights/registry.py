"""The weight transports by the names that ``sync.backend`` gives them."""

from __future__ import annotations

from actors.weights.ipc import CudaIpc
from actors.weights.nccl import Nccl
from actors.weights.object_store import ObjectStore
from actors.weights.transport import WeightTransport
from opd_ray.config.choices import SyncBackend

TRANSPORTS: dict[SyncBackend, type[WeightTransport]] = {
    SyncBackend.ray: ObjectStore,
    SyncBackend.nccl: Nccl,
    SyncBackend.ipc: CudaIpc,
}


def register_vllm_engines() -> None:
    """Make the transports' own backends known to vLLM in this process (once)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for transport in TRANSPORTS.values():
        name = transport.vllm_backend
        if transport.vllm_engine and name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, *transport.vllm_engine)
