"""An adapter by two matrix products against its definition and vLLM's own class, on a CPU."""

from __future__ import annotations

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from actors.kernels.one_adapter import OneAdapter

TOKENS, WIDE, RANK, SLICES = 7, 24, 8, (16, 8, 8)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def wrapper(cls, adapters):
    made = cls(TOKENS, 4, "cpu")
    mapping = LoRAMapping(tuple(adapters), tuple(adapters), is_prefill=True)
    made.update_metadata(mapping, [1], 1, 100)
    return made


def tensors(dtype):
    """Input, output before, A and B of three layers that vLLM has side by side."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    first = tuple(random(1, 1, RANK, WIDE) for _ in SLICES)
    second = tuple(random(1, 1, size, RANK) for size in SLICES)
    return random(TOKENS, WIDE), random(TOKENS, sum(SLICES)), first, second


def test_engines_on_cpus_are_given_it():
    assert current_platform.get_punica_wrapper() == "actors.kernels.one_adapter.OneAdapter"


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_adds_scale_times_b_a_x(dtype):
    x, before, first, second = tensors(dtype)
    y = before.clone()
    wrapper(OneAdapter, [1] * TOKENS).add_lora_linear(y, x, first, second, 0.5, SLICES)
    expected = before.double().clone()
    for token in range(TOKENS):
        start = 0
        for a, b, size in zip(first, second, SLICES, strict=True):
            inner = a[0, 0].double() @ x[token].double()
            expected[token, start : start + size] += 0.5 * (b[0, 0].double() @ inner)
            start += size
    largest = expected.abs().max().item()
    torch.testing.assert_close(
        y.double(), expected, rtol=0, atol=TOLERANCE[dtype] * max(1.0, largest)
    )
    theirs = before.clone()
    own = wrapper(PunicaWrapperCPU, [1] * TOKENS)
    own.add_lora_linear(theirs, x, first, second, 0.5, SLICES)
    coarse = 4 * TOLERANCE[dtype] * max(1.0, largest)
    torch.testing.assert_close(y.float(), theirs.float(), rtol=0, atol=coarse)


def test_without_an_adapter_nothing_is_added():
    x, before, first, second = tensors(torch.float32)
    y = before.clone()
    wrapper(OneAdapter, [0] * TOKENS).add_lora_linear(y, x, first, second, 0.5, SLICES)
    torch.testing.assert_close(y, before, rtol=0, atol=0)
