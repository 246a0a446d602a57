"""Weights in chunks: nothing is lost on the way, and a tied head always travels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from tiny_models import make_tiny_qwen3
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.distributed.weight_transfer import nccl_engine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from actors.weights.chunks import converts_weights, named_weights, pack, stored_weights, unpack
from actors.weights.nccl import Nccl
from actors.weights.ray_engine import ChunkWeightTransferEngine
from actors.weights.registry import register_vllm_engines
from actors.weights.vllm_client import weight_source


def some_tensors() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("a.weight", torch.randn(3, 5, generator=generator)),
        ("a.norm", torch.randn(7, generator=generator).to(torch.bfloat16)),  # 14 bytes, odd in 16
        ("empty", torch.empty(0, 4)),
        ("scalar", torch.tensor(2.5)),
        ("transposed", torch.randn(4, 6, generator=generator).T),
        ("large", torch.randn(40, 10, generator=generator).to(torch.bfloat16)),
        ("last", torch.arange(9, dtype=torch.int64)),
    ]


@pytest.mark.parametrize("chunk_bytes", [1, 64, 200, 1 << 20])
def test_unpacked_tensors_equal_the_packed_ones(chunk_bytes):
    sent = some_tensors()
    received = [pair for chunk in pack(sent, chunk_bytes) for pair in unpack(chunk)]
    assert [name for name, _ in received] == [name for name, _ in sent]
    for (name, before), (_, after) in zip(sent, received, strict=True):
        assert after.dtype == before.dtype, name
        assert after.shape == before.shape, name
        assert torch.equal(after, before), name


def test_a_chunk_exceeds_its_size_only_for_a_single_larger_tensor():
    chunks = list(pack(some_tensors(), chunk_bytes=128))
    assert len(chunks) > 2
    too_large = [chunk.names for chunk in chunks if chunk.buffer.nbytes > 128]
    assert too_large == [("large",)]


def test_a_chunk_survives_a_read_only_buffer():
    """Arrays out of Ray's object store are read-only."""
    (chunk,) = pack([("w", torch.ones(3))], 1 << 10)
    chunk.buffer.flags.writeable = False
    ((_, tensor),) = unpack(chunk)
    tensor.add_(1)
    assert torch.equal(tensor, torch.full((3,), 2.0))
    assert np.array_equal(chunk.buffer[:12].view(np.float32), np.ones(3, np.float32))


def test_packing_is_lazy():
    """Under ZeRO stage 3 every tensor is gathered when it is asked for, one chunk at a time."""
    asked = []

    def tensors():
        for number in range(6):
            asked.append(number)
            yield str(number), torch.zeros(16)

    chunks = pack(tensors(), chunk_bytes=128)
    next(chunks)
    assert asked == [0, 1, 2]


def test_nothing_and_nonsense():
    assert list(pack([], 1)) == []
    with pytest.raises(ValueError, match="chunk_bytes must be positive, got 0"):
        next(pack(some_tensors(), 0))


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_always_among_the_named_weights(tmp_path, tied):
    make_tiny_qwen3(tmp_path, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    sent = dict(named_weights(model))
    assert set(sent) == set(model.state_dict())
    assert torch.equal(sent["lm_head.weight"], model.lm_head.weight)
    assert torch.equal(sent["model.embed_tokens.weight"], sent["lm_head.weight"]) == tied
    assert not any(tensor.requires_grad for tensor in sent.values())


def test_named_weights_are_what_full_makes_of_them(tmp_path):
    make_tiny_qwen3(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    halves = dict(named_weights(model, lambda parameter: parameter.detach().to(torch.bfloat16)))
    assert {tensor.dtype for tensor in halves.values()} == {torch.bfloat16}


def tiny_mixture(folder, kind: str):
    """A mixture of three experts, whose layers transformers holds in other tensors than files."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        moe_intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_experts=3,
        num_local_experts=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("kind", "gate_of_an_expert"),
    [
        ("qwen3_moe", "model.layers.1.mlp.experts.2.gate_proj.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w1.weight"),
    ],
)
def test_experts_are_sent_as_files_hold_them(tmp_path, kind, gate_of_an_expert):
    """vLLM would put a tensor of all experts elsewhere, or know no place for it."""
    model = tiny_mixture(tmp_path, kind)
    assert converts_weights(model)
    sent = dict(stored_weights(model))
    file = load_file(tmp_path / "model.safetensors")
    assert gate_of_an_expert in sent
    assert set(sent) == set(file)
    assert all(torch.equal(sent[name], tensor) for name, tensor in file.items())
    own = dict(model.named_parameters())["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(sent[gate_of_an_expert], own[2, :12])


def test_experts_are_taken_apart_a_layer_at_a_time(tmp_path):
    asked = []

    def full(parameter):
        asked.append(tuple(parameter.shape))
        return parameter.detach()

    model = tiny_mixture(tmp_path, "qwen3_moe")
    weights = stored_weights(model, full)
    names = [next(weights)[0] for _ in range(2)]
    assert names[0] == "model.embed_tokens.weight"
    assert names[1].startswith("model.layers.0.")
    layer = sum(name.startswith("model.layers.0.") for name, _ in model.named_parameters())
    assert len(asked) == 1 + layer + 1  # and the first of the next layer, which ended this one


def test_a_rank_without_the_weights_sends_its_empty_tensors(tmp_path):
    model = tiny_mixture(tmp_path, "qwen3_moe")
    sent = list(stored_weights(model, lambda parameter: parameter.new_empty(0)))
    assert [tensor.numel() for _, tensor in sent] == [0] * len(list(model.parameters()))


def test_weights_of_a_model_that_is_held_as_its_files_are_sent_as_they_are(tmp_path):
    make_tiny_qwen3(tmp_path, tied=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not converts_weights(model)
    assert [name for name, _ in stored_weights(model)] == [name for name, _ in named_weights(model)]


# The NCCL transport, of which only the transfer itself needs GPUs: vLLM's own trainer engine makes
# all calls here.


class NcclBench:
    """Trainer ranks of a tied model and three engines of two workers each; ``said`` has all calls.

    Args:
        fails: the call that the last engine fails at.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> None:
        self.said: list[Any] = []
        self.broadcast: list[list[str]] = []  # names, by update
        self.gathered = [0, 0]  # how often each rank went through the weights
        self._fails = fails
        monkeypatch.setattr(ray, "get", lambda refs: refs)
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
        monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", self._open)
        monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", self._broadcast)
        handles = [
            SimpleNamespace(call_transport=SimpleNamespace(remote=partial(self._called, number)))
            for number in range(3)
        ]
        weights = [partial(self._weights, rank) for rank in range(2)]
        self.ranks = [Nccl.trainer_end(weights[rank], rank, 1 << 20) for rank in range(2)]
        self.open = lambda: [rank.open(handles, 2) for rank in self.ranks]

    def _weights(self, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
        self.gathered[rank] += 1
        return iter([("embed", torch.zeros(3, 2)), ("lm_head", torch.zeros(3, 2))])

    def _called(self, engine: int, method: str, argument: Any = None) -> None:
        if method == "init_weight_transfer":
            argument = {name: argument[name] for name in ("rank_offset", "world_size")}
        self.said.append((engine, method, argument))
        if engine == 2 and method == self._fails:
            raise ConnectionError(f"engine 2 is not there at {method}")

    def _open(self, info: Any) -> str:
        assert (info.master_address, info.world_size, info.rank) == ("10.0.0.1", 7, 0)
        return "group"

    def _broadcast(self, iterator: Any, group: str, src: int, **_: Any) -> None:
        assert (group, src) == ("group", 0)
        assert self.said[-1][1] in ("start_weight_update", "receive_weights")
        self.broadcast.append([name for name, _ in iterator])

    def send(self, version: int) -> None:
        for rank in self.ranks[::-1]:
            rank.send(version)


UPDATE = {"names": ["embed", "lm_head"], "dtype_names": ["float32"] * 2, "shapes": [[3, 2]] * 2}


def test_nccl_joins_every_engine_at_its_own_ranks_and_updates_all_in_order(monkeypatch):
    bench = NcclBench(monkeypatch)
    bench.open()
    joined = [
        (n, "init_weight_transfer", {"rank_offset": offset, "world_size": 7})
        for n, offset in enumerate((1, 3, 5))
    ]
    assert bench.said == joined
    for version in (4, 5):
        bench.said.clear()
        bench.send(version)
        assert bench.said == [
            *((n, "start_weight_update", None) for n in range(3)),
            *((n, "receive_weights", UPDATE) for n in range(3)),
            *((n, "finish_weight_update", version) for n in range(3)),
        ]
    assert bench.broadcast == [["embed", "lm_head"]] * 2
    # Once for names and shapes, and once an update: a collective, so as often on every rank.
    assert bench.gathered == [3, 3]


@pytest.mark.parametrize("method", ["start_weight_update", "receive_weights"])
def test_nccl_ends_no_update_that_an_engine_missed(monkeypatch, method):
    bench = NcclBench(monkeypatch, fails=method)
    bench.open()
    with pytest.raises(ConnectionError, match=f"not there at {method}"):
        bench.send(4)
    assert "finish_weight_update" not in {called for _, called, _ in bench.said}


def test_nccl_does_not_open_without_an_engine(monkeypatch):
    bench = NcclBench(monkeypatch, fails="init_weight_transfer")
    with pytest.raises(ConnectionError, match="engine 2"):
        bench.open()


def test_the_nccl_source_declares_what_it_sends(tmp_path):
    make_tiny_qwen3(tmp_path, tied=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    source = weight_source(lambda: named_weights(model))
    sent = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
    assert [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()] == sent
    assert "lm_head.weight" in {name for name, *_ in sent}


def test_vllm_finds_the_receiver_of_every_transport():
    register_vllm_engines()
    register_vllm_engines()
    known = WeightTransferEngineFactory._registry
    assert known["opd_ray"]() is ChunkWeightTransferEngine
    assert known["nccl"]() is nccl_engine.NCCLWeightTransferEngine
