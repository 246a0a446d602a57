"""The three divergences over a block of rows: value and gradient with respect to student logits.

Everything works in place on [B, V] blocks small enough for a processor's cache. P is the student,
Q the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from opd_ray.types import Divergence

# Log-probabilities, nats, are taken to be at least this. A probability of exactly 0 (a logit of
# -inf) would otherwise make KL infinite wherever the other side has mass; so it costs 10,000 nats
# times that mass instead. No finite logit of a real model comes near it, so no other value changes.
LOGPROB_FLOOR = -1e4

# JSD takes log Q/P to be at most this: exp() must not overflow, and the less that is later taken
# away again, the less is lost to rounding. Where Q/P is greater, P's share in M is below float64's.
_LOG_RATIO_CEILING = 36.0


def log_softmax_(logits_BV: Tensor) -> Tensor:
    """Turn logits into log-probabilities in place, not below ``LOGPROB_FLOOR``.

    A row that is all -inf, or holds NaN or +inf, becomes NaN, and so do the values made from it.
    """
    return torch.log_softmax(logits_BV, -1, out=logits_BV).clamp_(min=LOGPROB_FLOOR)


def reverse_kl_(log_p_BV: Tensor, p_BV: Tensor, log_q_BV: Tensor, gradient: bool) -> Tensor:
    """KL(P||Q) = sum P (log P - log Q). See :func:`kernel_of`."""
    ratio_BV = torch.sub(log_p_BV, log_q_BV, out=log_q_BV)
    kl_B1 = torch.mul(p_BV, ratio_BV, out=log_p_BV).sum(-1, keepdim=True)
    if gradient:  # P (log P - log Q - KL)
        torch.mul(ratio_BV.sub_(kl_B1), p_BV, out=log_p_BV)
    return kl_B1.squeeze(-1)


def forward_kl_(log_p_BV: Tensor, p_BV: Tensor, log_q_BV: Tensor, gradient: bool) -> Tensor:
    """KL(Q||P) = sum Q (log Q - log P). See :func:`kernel_of`."""
    ratio_BV = torch.sub(log_q_BV, log_p_BV, out=log_p_BV)
    q_BV = log_q_BV.exp_()
    kl_B = ratio_BV.mul_(q_BV).sum(-1)
    if gradient:
        torch.sub(p_BV, q_BV, out=log_p_BV)
    return kl_B


def jsd_(
    log_p_BV: Tensor, p_BV: Tensor, log_q_BV: Tensor, gradient: bool, beta: float = 0.5
) -> Tensor:
    """beta KL(Q||M) + (1 - beta) KL(P||M) with M = beta Q + (1 - beta) P. See :func:`kernel_of`.

    log(P/M) is taken as -log1p(beta (Q/P - 1)), which is exactly 0 where P = Q; log(P) - log(M) is
    not.
    """
    log_q_over_p_BV = torch.sub(log_q_BV, log_p_BV, out=log_p_BV)
    log_q_over_p_BV.clamp_(max=_LOG_RATIO_CEILING)
    log_p_over_m_BV = log_q_over_p_BV.expm1().mul_(beta).log1p_().neg_()
    kl_q_B = log_q_over_p_BV.add_(log_p_over_m_BV).mul_(log_q_BV.exp_()).sum(-1)
    kl_p_B1 = torch.mul(p_BV, log_p_over_m_BV, out=log_q_BV).sum(-1, keepdim=True)
    if gradient:  # (1 - beta) P (log P/M - KL(P||M))
        torch.mul(log_p_over_m_BV.sub_(kl_p_B1), p_BV, out=log_p_BV).mul_(1.0 - beta)
    return beta * kl_q_B + (1.0 - beta) * kl_p_B1.squeeze(-1)


# (log_p_BV, p_BV, log_q_BV, gradient) -> value_B, nats
Kernel = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def kernel_of(kind: Divergence, beta: float) -> Kernel:
    """The divergence of that name.

    It overwrites ``log_p_BV`` and ``log_q_BV``; with ``gradient`` the former then holds the
    gradient of each row's value with respect to that row's student logits.

    Raises:
        ValueError: an unknown kind, or a beta outside (0, 1).
    """
    if kind == Divergence.reverse_kl:
        return reverse_kl_
    if kind == Divergence.forward_kl:
        return forward_kl_
    if kind != Divergence.jsd:
        raise ValueError(f"kind must be reverse_kl, forward_kl or jsd, not {kind!r}")
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta must lie strictly between 0 and 1, not {beta}: at either end JSD is 0; for a "
            "plain KL choose kind reverse_kl or forward_kl"
        )
    return partial(jsd_, beta=beta)
