"""The divergences written from their definitions, one row at a time, for autograd in float64.

Deliberately naive: whole probability vectors, no log-softmax, no chunks, nothing shared with the
code under test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opd_ray.divergence import HiddenTarget, LogitsTarget, SampledTarget, Target, TopKTarget


def probabilities(logits_V: Tensor) -> Tensor:
    weights_V = (logits_V - logits_V.detach().max()).exp()
    return weights_V / weights_V.sum()


def kl(p_V: Tensor, q_V: Tensor) -> Tensor:
    """sum p log(p / q), terms with p = 0 left out."""
    seen = p_V > 0
    return (p_V[seen] * (p_V[seen] / q_V[seen]).log()).sum()


def divergence(kind: str, p_V: Tensor, q_V: Tensor, beta: float = 0.5) -> Tensor:
    if kind == "reverse_kl":
        return kl(p_V, q_V)
    if kind == "forward_kl":
        return kl(q_V, p_V)
    middle_V = beta * q_V + (1 - beta) * p_V
    return beta * kl(q_V, middle_V) + (1 - beta) * kl(p_V, middle_V)


def coarse(p_V: Tensor, ids: list[int]) -> Tensor:
    """The probabilities of ``ids`` and of everything else together."""
    outside = [v for v in range(len(p_V)) if v not in ids]
    return torch.stack([p_V[v] for v in ids] + [p_V[outside].sum()])


def student_logits(
    hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, vocab: int, temperature: float
) -> Tensor:
    logits_NV = hidden_ND @ head_VD[:vocab].T
    if bias_V is not None:
        logits_NV = logits_NV + bias_V[:vocab]
    return logits_NV / temperature


def row_pair(target: Target, row: int, p_V: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two probability vectors that the target lets one compare."""
    vocab = len(p_V)
    if isinstance(target, HiddenTarget):
        logits_V = target.head_VD[:vocab] @ target.hidden_ND[row]
        if target.bias_V is not None:
            logits_V = logits_V + target.bias_V[:vocab]
        return p_V, probabilities(logits_V / temperature)
    if isinstance(target, LogitsTarget):
        return p_V, probabilities(target.logits_NV[row, :vocab] / temperature)
    assert isinstance(target, TopKTarget)
    ids = target.ids_Nk[row].tolist()
    known = [q.exp() for q, v in zip(target.logprobs_Nk[row], ids, strict=True) if v != -1]
    tail = 1 - sum(known) if len(known) < vocab else 0 * known[0]
    q_W = torch.stack([*known, tail])
    return coarse(p_V, [v for v in ids if v != -1]), q_W


def loss(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target: Target,
    *,
    kind: str = "reverse_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    weights_N: Tensor | None = None,
    bias_V: Tensor | None = None,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss for autograd, and the divergence of every row."""
    vocab = vocab_size or len(head_VD)
    logits_NV = student_logits(hidden_ND, head_VD, bias_V, vocab, temperature)
    values, terms = [], []
    for row, logits_V in enumerate(logits_NV):
        p_V = probabilities(logits_V)
        if isinstance(target, SampledTarget):
            log_p = p_V[target.token_ids_N[row]].log()
            value = (log_p - target.logprobs_N[row]).detach()
            if target.drawn_logprobs_N is not None:
                value = value * (log_p.detach() - target.drawn_logprobs_N[row]).exp()
            term = value * log_p  # its derivative is the score-function estimate
        else:
            pair = row_pair(target, row, p_V, temperature)
            value = term = divergence(kind, *pair, beta)
        values.append(value.detach())
        terms.append(term if weights_N is None else term * weights_N[row])
    return torch.stack(terms).sum(), torch.stack(values)
