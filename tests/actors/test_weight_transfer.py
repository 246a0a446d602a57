"""Weights in chunks: nothing is lost on the way, and a tied head always travels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_qwen3
from transformers import AutoModelForCausalLM

from actors.weights.chunks import named_weights, pack, unpack


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
    too_large = [chunk.names for chunk in chunks if chunk.nbytes > 128]
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
