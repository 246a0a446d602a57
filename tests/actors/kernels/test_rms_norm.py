"""vLLM's compiled RMS norms against its PyTorch ones, on a CPU."""

from __future__ import annotations

import pytest
import torch
from vllm import ir

from actors.kernels.rms_norm import CPU_KERNEL_CONFIG

EPSILON = 1e-5
(NAME,) = CPU_KERNEL_CONFIG["ir_op_priority"]["rms_norm"]
# bfloat16: the PyTorch operations round twice, each time by up to half of 2 ** -8.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}


def implementations(op):
    return op.impls[NAME], op.impls["native"]


def inputs(dtype, *shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_close(got, expected):
    assert got.dtype == expected.dtype
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_norm_is_that_of_pytorch(dtype):
    kernel, native = implementations(ir.ops.rms_norm)
    x, weight = inputs(dtype, 5, 64), inputs(dtype, 64)
    assert kernel.supported
    assert kernel.supports_args(x, weight, EPSILON)
    assert_close(kernel.impl_fn(x, weight, EPSILON), native.impl_fn(x, weight, EPSILON))
    assert_close(kernel.impl_fn(x, None, EPSILON), native.impl_fn(x, None, EPSILON))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_heads_that_are_cut_out_of_a_product_are_normalised(dtype):
    kernel, native = implementations(ir.ops.rms_norm)
    heads, weight = inputs(dtype, 5, 6, 16)[:, 1:4], inputs(dtype, 16)
    assert not heads.is_contiguous()
    assert_close(kernel.impl_fn(heads, weight, EPSILON), native.impl_fn(heads, weight, EPSILON))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_sum_and_its_norm_are_those_of_pytorch(dtype):
    kernel, native = implementations(ir.ops.fused_add_rms_norm)
    x, residual, weight = inputs(dtype, 5, 64), inputs(dtype, 5, 64).flip(0), inputs(dtype, 64)
    assert kernel.supported
    assert kernel.supports_args(x, residual, weight, EPSILON)
    expected = native.impl_fn(x, residual, weight, EPSILON)
    for got, wanted in zip(kernel.impl_fn(x, residual, weight, EPSILON), expected, strict=True):
        assert_close(got, wanted)


def test_what_the_kernels_cannot_take_is_left_to_pytorch():
    norm, _ = implementations(ir.ops.rms_norm)
    add_norm, _ = implementations(ir.ops.fused_add_rms_norm)
    x = inputs(torch.bfloat16, 5, 64)
    assert not norm.supports_args(x[:, :12], None, EPSILON)  # no whole vectors
    assert not norm.supports_args(x, torch.ones(64), EPSILON)  # weight of another type
    assert not norm.supports_args(x, None, EPSILON, 32)  # variance of a part
    assert not add_norm.supports_args(x[:, ::2], x[:, ::2], None, EPSILON)
