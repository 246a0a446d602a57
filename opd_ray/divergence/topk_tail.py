"""Teacher's top-k and one tail bucket: both distributions made coarser in the same way.

The student's full distribution is summed into the same k + 1 buckets (its mass outside the
teacher's support is its tail), so a divergence is that of two true distributions: never negative,
and never above the divergence of the full ones (data processing inequality).
"""

from __future__ import annotations

import torch
from torch import Tensor

from opd_ray.divergence.blocks import Cut
from opd_ray.divergence.target import TopKTarget, check_token_ids

# The teacher's tail is 1 minus a sum of float32 probabilities, so it is not known below the spacing
# of float32 numbers under 1. It is taken to be at least that, also where it is rounded to below 0.
MIN_TAIL_MASS = 2.0**-24

# Probabilities of distinct tokens may add up to this much more than 1 before it counts as an error;
# half-precision log-probabilities need about this much.
_EXCESS = 1e-2


class TopKTail:
    """The k + 1 buckets of every row, as logits of teacher and student, and the way back."""

    def __init__(self, target: TopKTarget, cut: Cut) -> None:
        check_token_ids("ids_Nk", target.ids_Nk, cut.vocab)
        _check_distinct(target.ids_Nk)
        self.ids_Nk = target.ids_Nk
        self.teacher_NW = _teacher_buckets(target, cut.vocab).to(cut.dtype)

    def student_(self, logits_BV: Tensor, rows: slice) -> Tensor:
        """The student's bucket logits [B, k + 1], the tail's being the log of its sum of exp.

        ``logits_BV`` is overwritten: it then holds each token's share of the tail, 0 inside.
        """
        ids_Bk = self.ids_Nk[rows]
        support_Bk = logits_BV.gather(1, ids_Bk)
        tail_BV = logits_BV.scatter_(1, ids_Bk, -torch.inf)
        # An empty tail has no finite greatest logit; any finite number leaves all its shares at 0.
        lowest = torch.finfo(tail_BV.dtype).min
        greatest_B1 = tail_BV.amax(1, keepdim=True).clamp_(min=lowest)
        sum_B1 = tail_BV.sub_(greatest_B1).exp_().sum(1, keepdim=True)
        tail_BV.div_(sum_B1.clamp(min=torch.finfo(tail_BV.dtype).tiny))
        return torch.cat((support_Bk, sum_B1.log_().add_(greatest_B1)), dim=1)

    def spread_(self, gradient_BW: Tensor, shares_BV: Tensor, rows: slice) -> None:
        """Turn a gradient on bucket logits into one on token logits, written into ``shares_BV``.

        ``shares_BV`` is what :meth:`student_` left: d(tail logit) / d(token logit).
        """
        shares_BV.mul_(gradient_BW[:, -1:])
        shares_BV.scatter_(1, self.ids_Nk[rows], gradient_BW[:, :-1])


def _teacher_buckets(target: TopKTarget, vocab: int) -> Tensor:
    """The teacher's bucket log-probabilities [N, k + 1], float64, up to rounding in their sum."""
    logprobs_Nk = target.logprobs_Nk.double()
    tail_N1 = 1.0 - logprobs_Nk.exp().sum(1, keepdim=True)
    wrong_N = ~(tail_N1[:, 0] >= -_EXCESS)
    if wrong_N.any():
        row = int(wrong_N.nonzero()[0])
        raise ValueError(
            f"the probabilities of logprobs_Nk row {row} sum to {1.0 - float(tail_N1[row]):g}: "
            "they must be log-probabilities under the full distribution, at most 1 together"
        )
    if logprobs_Nk.shape[1] == vocab:  # nothing is outside the support, on either side
        log_tail_N1 = torch.full_like(tail_N1, -torch.inf)
    else:
        log_tail_N1 = tail_N1.clamp(min=MIN_TAIL_MASS).log()
    return torch.cat((logprobs_Nk, log_tail_N1), dim=1)


def _check_distinct(ids_Nk: Tensor) -> None:
    """Whether every row names an id once: else its mass would be counted twice.

    Raises:
        ValueError: one does not.
    """
    ordered_Nk = ids_Nk.sort(dim=1).values
    repeated = ordered_Nk[:, 1:] == ordered_Nk[:, :-1]
    if repeated.any():
        row, column = repeated.nonzero()[0].tolist()
        raise ValueError(f"ids_Nk row {row} holds id {int(ordered_Nk[row, column])} more than once")
