"""Causal attention with a backward pass of matrix products, for bfloat16 on CPUs.

The backward pass of PyTorch's own kernel there shares out heads, not rows, and so leaves cores idle
where a row of packed texts is attended to text by text. As with that kernel, what lives between the
two passes grows with the text and not with its square: the attention weights are computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

# Query rows whose attention weights are alive at once.
_BLOCK = 128


class ProductAttention(torch.autograd.Function):
    """Softmax attention of the last L of U positions to all U, none looking ahead.

    ``ProductAttention.apply(query, key, value, scale)`` with query ``[H, L, F]``, key and value
    ``[G, U, F]`` (H a multiple of G: neighbouring heads share keys) and the factor of the products
    gives ``[H, L, F]``.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        key, value = key.contiguous(), value.contiguous()
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return F.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=causal_lower_right(query.shape[1], key.shape[1]),
            scale=scale,
            enable_gqa=True,
        )[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grad_output = _by_key(grad_outputs[0], key)
        grad_query = _by_key(torch.empty_like(query), key)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for rows, query_GBF, seen in _blocks(query, key):
            weights = _weights(query_GBF, key[:, :seen], rows.stop - rows.start, ctx.scale)
            grad_GBF = grad_output[:, :, rows].reshape(query_GBF.shape)
            grad_value[:, :seen] += weights.mT @ grad_GBF
            grad_weights = grad_GBF @ value[:, :seen].mT
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_scores *= ctx.scale
            grad_query_GBF = grad_scores @ key[:, :seen]
            grad_query[:, :, rows] = grad_query_GBF.view_as(grad_query[:, :, rows])
            grad_key[:, :seen] += grad_scores.mT @ query_GBF
        return grad_query.view_as(query), grad_key, grad_value, None


def _by_key(query: Tensor, key: Tensor) -> Tensor:
    """``[G, H / G, L, F]``: the heads by the key that they share."""
    return query.reshape(len(key), -1, *query.shape[1:])


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, Tensor, int]]:
    """Query rows of a block, as a slice and as ``[G, B, F]``, and the keys it sees."""
    length, positions = query.shape[1], key.shape[1]
    grouped = _by_key(query, key)
    for start in range(0, length, _BLOCK):
        rows = slice(start, min(start + _BLOCK, length))
        query_GBF = grouped[:, :, rows].reshape(len(key), -1, query.shape[2])
        yield rows, query_GBF, positions - length + rows.stop


def _weights(query_GBF: Tensor, key: Tensor, rows: int, scale: float) -> Tensor:
    """Attention weights of a block ``[G, B, U]``, whose last row sees all U keys."""
    # In float32, as PyTorch's kernel: scores of pretrained models can be large, and bfloat16 would
    # round them by tenths.
    scores = torch.bmm(query_GBF.float() * scale, key.float().mT)
    ahead = torch.full((rows, rows), -torch.inf).triu_(1)
    scores.view(len(key), -1, rows, key.shape[1])[..., -rows:].add_(ahead)
    return scores.softmax(-1).to(query_GBF.dtype)
