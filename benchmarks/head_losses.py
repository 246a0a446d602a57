"""Four ways from hidden rows and output heads to the reverse KL, for autograd.

They give the same sum over the rows, and differ in what lives until the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from opd_ray.divergence import HiddenTarget, linear_divergence

# hidden_ND, head_VD, teacher's hidden_ND and head_VD -> sum of KL(P||Q) over the rows.
HeadLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Rows of a chunk, where there are chunks that autograd knows of.
CHUNK_ROWS = 1024


def full_logits(hidden_ND: Tensor, head_VD: Tensor, of_teacher: Tensor, its_head: Tensor) -> Tensor:
    """Whole logits of both, log-softmax in float32, KL, autograd."""
    log_p_NV = F.log_softmax((hidden_ND @ head_VD.T).float(), -1)
    with torch.no_grad():
        log_q_NV = F.log_softmax((of_teacher @ its_head.T).float(), -1)
    return F.kl_div(log_q_NV, log_p_NV, reduction="sum", log_target=True)


def chunks_kept(hidden_ND: Tensor, head_VD: Tensor, of_teacher: Tensor, its_head: Tensor) -> Tensor:
    """Chunk by chunk; what autograd saved of each chunk lives until the backward pass."""
    return _in_chunks(full_logits, hidden_ND, head_VD, of_teacher, its_head)


def chunks_recomputed(
    hidden_ND: Tensor, head_VD: Tensor, of_teacher: Tensor, its_head: Tensor
) -> Tensor:
    """Chunk by chunk; a chunk is computed again when its backward pass comes."""

    def again(*chunk: Tensor) -> Tensor:
        return checkpoint(full_logits, *chunk, use_reentrant=False)

    return _in_chunks(again, hidden_ND, head_VD, of_teacher, its_head)


def fused(hidden_ND: Tensor, head_VD: Tensor, of_teacher: Tensor, its_head: Tensor) -> Tensor:
    """The product's own: gradients are made in the pass that makes the loss."""
    return linear_divergence(hidden_ND, head_VD, HiddenTarget(of_teacher, its_head)).loss


LOSSES: dict[str, HeadLoss] = {
    "full logits": full_logits,
    "chunks kept": chunks_kept,
    "chunks recomputed": chunks_recomputed,
    "fused": fused,
}


def _in_chunks(
    loss: HeadLoss, hidden_ND: Tensor, head_VD: Tensor, of_teacher: Tensor, its_head: Tensor
) -> Tensor:
    parts = [
        loss(hidden_CD, head_VD, of_teacher_CD, its_head)
        for hidden_CD, of_teacher_CD in zip(
            hidden_ND.split(CHUNK_ROWS), of_teacher.split(CHUNK_ROWS), strict=True
        )
    ]
    return torch.stack(parts).sum()
