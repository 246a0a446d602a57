"""Attention by matrix products: values and gradients by the definition, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from actors.kernels.product_attention import ProductAttention

SHAPES = [(4, 2, 5, 9), (3, 1, 128, 128), (2, 2, 300, 310), (6, 3, 1, 40)]  # H, K, L, S


def inputs(heads, keys, rows, positions, dtype):
    torch.manual_seed(rows)
    # As a model has them: [T, heads, D], seen the other way round.
    shapes = ((rows, heads, 8), (positions, keys, 8), (positions, keys, 8))
    made = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


def by_definition(query, key, value, scale):
    """One head and one row at a time."""
    rows, heads, _ = query.shape
    ahead, group = len(key) - rows, heads // key.shape[1]
    output = []
    for head in range(heads):
        k, v = key[:, head // group], value[:, head // group]
        for row in range(rows):
            seen = ahead + row + 1
            weights = (k[:seen] @ query[row, head] * scale).softmax(0)
            output.append(weights @ v[:seen])
    return torch.stack(output).view(heads, rows, -1)


def swapped(tensors):
    return [tensor.transpose(0, 1) for tensor in tensors]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_by_the_definition(shape):
    tensors = inputs(*shape, torch.float32)
    output = ProductAttention.apply(*swapped(tensors), 0.3)
    weight = torch.randn_like(output)
    found = torch.autograd.grad((output * weight).sum(), tensors)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = by_definition(*exact, 0.3)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    torch.testing.assert_close(output, expected.float(), rtol=1e-5, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-4)


def test_in_bfloat16_it_is_as_near_as_pytorchs_own():
    """To the float64 attention of the same bfloat16 inputs, values and gradients."""
    tensors = inputs(4, 2, 200, 225, torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    weight = torch.randn(4, 200, 8, dtype=torch.bfloat16)

    def pytorchs(query, key, value):
        mask = causal_lower_right(200, 225)
        return scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, scale=1.5, enable_gqa=True
        )[0]

    def with_gradients(attend, of):
        output = attend(*swapped(of))
        return [output, *torch.autograd.grad((output * weight.to(output.dtype)).sum(), of)]

    wanted = with_gradients(pytorchs, exact)
    own = with_gradients(pytorchs, tensors)
    ours = with_gradients(lambda *qkv: ProductAttention.apply(*qkv, 1.5), tensors)
    for right, theirs, found in zip(wanted, own, ours, strict=True):
        error, allowed = ((x.double() - right).norm() / right.norm() for x in (found, theirs))
        assert error <= 2 * allowed
