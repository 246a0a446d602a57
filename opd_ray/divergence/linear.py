"""The fused divergence: from hidden rows, output head and teacher signal to loss and gradients.

Student logits, teacher logits, divergence and analytic gradients are made chunk by chunk of rows in
one pass. No tensor with rows and vocabulary outlives its chunk, nothing is kept for backward but
the gradients themselves, and backward only multiplies them by the incoming scalar.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opd_ray.divergence.fused_pass import DivergenceOutput, FusedPass
from opd_ray.divergence.target import Target, check_call
from opd_ray.types import Divergence


def linear_divergence(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target: Target,
    *,
    kind: Divergence = Divergence.reverse_kl,
    beta: float = 0.5,
    temperature: float = 1.0,
    weights_N: Tensor | None = None,
    bias_V: Tensor | None = None,
    vocab_size: int | None = None,
    chunk_size: int | None = None,
    sampled_ids_N: Tensor | None = None,
) -> DivergenceOutput:
    """Divergence between student P = softmax((hidden head^T + bias) / temperature) and teacher Q.

    reverse_kl: KL(P||Q). forward_kl: KL(Q||P). jsd: beta KL(Q||M) + (1 - beta) KL(P||M) with
    M = beta Q + (1 - beta) P. A :class:`TopKTarget` compares the distributions over its own
    tokens plus one tail bucket (a lower bound; see ``topk_tail.py``). A :class:`SampledTarget`
    knows reverse_kl only, as log p(y) - log q(y), whose gradient is the score-function estimate
    (log p(y) - log q(y)) grad log p(y), both times p(y) / o(y) where y was drawn from another
    distribution O, which the target then tells; a value may be negative.

    Args:
        hidden_ND: [N, D] the student's last hidden states; N = 0 is allowed.
        head_VD: [V, D] its output head, same dtype; under ZeRO-3 already gathered. Matrix products
            run in this dtype; softmax, divergence and sums in float32 (float64 for float64).
        target: the teacher's signal for the same N rows. It gets no gradient.
        temperature: divides the student's logits and the teacher's; log-probabilities in a target
            must have been taken at it. The loss is not multiplied by temperature squared.
        weights_N: [N] factor of each row in the loss; None for 1. It gets no gradient.
        bias_V: [V] bias of the student's head, same dtype.
        vocab_size: rows of either head that are tokens. Rows beyond it are padding: in neither
            distribution, gradient zero. None: both sides must have the same number of rows.
        chunk_size: rows in a chunk; None chooses by memory. Changes no value, up to rounding.
        sampled_ids_N: [N] int64; the student's log-probabilities of these ids are returned.

    Values that would be infinite, because one side gives probability 0 where the other has mass,
    are finite: log-probabilities below ``LOGPROB_FLOOR`` count as that (the gradient is the true
    one wherever the floor is not touched). NaN or +inf in a row's logits makes its value NaN.

    Backward may run once, or more often with retain_graph; a second derivative is refused.

    Raises:
        ValueError: shapes, dtypes, ids or options that do not fit, naming the argument.
    """
    vocab = check_call(
        hidden_ND,
        head_VD,
        bias_V,
        target,
        vocab_size=vocab_size,
        temperature=temperature,
        sampled_ids_N=sampled_ids_N,
    )
    if weights_N is not None and weights_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"weights_N must be [{len(hidden_ND)}], not {list(weights_N.shape)}")
    fused_pass = FusedPass(
        target=target,
        kind=kind,
        beta=beta,
        temperature=temperature,
        weights_N=weights_N,
        vocab=vocab,
        chunk_size=chunk_size,
        sampled_ids_N=sampled_ids_N,
        wanted=(_wanted(hidden_ND), _wanted(head_VD), _wanted(bias_V)),
    )
    return DivergenceOutput(*_LinearDivergence.apply(hidden_ND, head_VD, bias_V, fused_pass))


class _LinearDivergence(torch.autograd.Function):
    """Hands over in backward the gradients that forward made."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, fused_pass: FusedPass
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        output, ctx.gradients = fused_pass.run(hidden_ND, head_VD, bias_V)
        ctx.mark_non_differentiable(output.divergence_N)
        if output.logprob_N is not None:
            ctx.mark_non_differentiable(output.divergence_N, output.logprob_N)
        return output.loss, output.divergence_N, output.logprob_N

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("linear_divergence has no second derivative: drop create_graph=True")
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of this linear_divergence were handed over in an earlier backward; "
                "pass retain_graph=True to that one, or call linear_divergence again"
            )
        if torch._C._autograd._get_current_graph_task_keep_graph():  # retain_graph=True
            scaled = [None if g is None else g * grad_loss for g in ctx.gradients]
        else:
            # In place, and not held here any longer: a copy would be a second tensor of the head's
            # size, both here and where autograd keeps a .grad that somebody else still refers to.
            scaled = [None if g is None else g.mul_(grad_loss) for g in ctx.gradients]
            ctx.gradients = None
        return (*scaled, None)


def _wanted(tensor: Tensor | None) -> bool:
    return torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
