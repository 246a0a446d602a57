"""Weights by CUDA IPC: vLLM's own ends on a recorded GPU, which this machine need not have."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from vllm.distributed.weight_transfer import ipc_engine, packed_tensor
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

from actors.weights.ipc import CudaIpc

WEIGHTS = {
    "embed": torch.arange(6.0).view(3, 2),
    "norm": torch.ones(2),
    "lm_head": torch.ones(3, 2),
}
EVERYTHING = ["embed", "norm", "lm_head"]


class IpcBench:
    """A trainer rank on a GPU that is only said to be there, and two engines; ``said`` has calls.

    What the rank puts into its buffer is read by the worker's end of vLLM, with its own checks.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
        self.said: list[tuple[int, str, Any]] = []
        self.buffers: list[int] = []
        properties = SimpleNamespace(uuid="GPU-0")
        monkeypatch.setattr(ray, "get", lambda refs: refs)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
        stream = SimpleNamespace(synchronize=lambda: None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        # What vLLM opens to others is handed over as it is; its buffer lies on the CPU.
        monkeypatch.setattr(ipc_engine, "packed_ipc_producer", self._producer)
        monkeypatch.setattr(packed_tensor, "reduce_tensor", lambda tensor: (None, (tensor,)))
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: empty(*a, **k))
        self.handles = [
            SimpleNamespace(call_transport=SimpleNamespace(remote=partial(self._called, number)))
            for number in range(2)
        ]
        self.rank = CudaIpc.trainer_end(self._weights, 0, chunk_bytes)

    def _producer(self, **arguments: Any) -> Iterator[Any]:
        self.buffers.append(arguments["buffer_size_bytes"])
        return packed_tensor.packed_ipc_producer(**arguments)

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(WEIGHTS.items())

    def _called(self, engine: int, method: str, argument: Any = None) -> None:
        if method == "receive_weights":
            # Refuses what the installed version would not take.
            worker = IPCWeightTransferEngine.__new__(IPCWeightTransferEngine)
            update = worker.parse_update_info(argument)
            content = update.ipc_handles["GPU-0"][0]
            total = sum(update.tensor_sizes)
            argument = (tuple(update.names), content[:total].view(torch.float32).tolist())
        self.said.append((engine, method, argument))


def test_every_engine_is_shown_all_weights_in_order_and_under_the_version(monkeypatch):
    bench = IpcBench(monkeypatch, chunk_bytes=32)
    bench.rank.send(4, bench.handles)
    first = (("embed", "norm"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 1.0])
    second = (("lm_head",), [1.0] * 6)
    calls = [
        ("init_weight_transfer", {"packed": True}),
        ("start_weight_update", None),
        ("receive_weights", first),
        ("receive_weights", second),
        ("finish_weight_update", 4),
    ]
    assert bench.said == [(engine, *call) for call in calls for engine in range(2)]


def test_other_engines_at_the_next_push_need_nothing_beforehand(monkeypatch):
    bench = IpcBench(monkeypatch, chunk_bytes=1 << 10)
    bench.rank.send(1, bench.handles[:1])
    bench.rank.send(2, bench.handles[1:])
    finished = [call for call in bench.said if call[1] == "finish_weight_update"]
    assert finished == [(0, "finish_weight_update", 1), (1, "finish_weight_update", 2)]
    assert {engine for engine, *_ in bench.said} == {0, 1}


def test_the_buffer_holds_the_largest_tensor(monkeypatch):
    bench = IpcBench(monkeypatch, chunk_bytes=8)
    bench.rank.send(1, bench.handles)
    assert bench.buffers == [24]


def test_vllm_has_the_receiver():
    assert WeightTransferEngineFactory._registry["ipc"]() is IPCWeightTransferEngine
