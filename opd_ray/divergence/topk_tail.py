"""Some tokens and one tail bucket: both distributions made coarser in the same way.

The tokens of a row, its support, are the teacher's likeliest, the student's, or any others. The
student's full distribution is summed into the same k + 1 buckets (its mass outside the support is
its tail), so a divergence is that of two true distributions: never negative, never above the
divergence of the full ones, and never lowered by further tokens in the support (data processing
inequality).
"""

from __future__ import annotations

import torch
from torch import Tensor

from opd_ray.divergence.blocks import Cut
from opd_ray.divergence.target import TopKTarget, check_token_ids
from opd_ray.types import NO_TOKEN

# The teacher's tail is 1 minus a sum of float32 probabilities, so it is not known below the spacing
# of float32 numbers under 1. It is taken to be at least that, also where it is rounded to below 0.
MIN_TAIL_MASS = 2.0**-24

# Probabilities of distinct tokens may add up to this much more than 1 before it counts as an error;
# half-precision log-probabilities need about this much.
_EXCESS = 1e-2


class TopKTail:
    """The k + 1 buckets of every row, as logits of teacher and student, and the way back.

    Attributes:
        ids_Nk: of the support; a place without a token has the row's first.
        outside_N: tokens outside the support, in each row's tail.
        teacher_NW: the teacher's bucket log-probabilities; -inf in a place without a token.
    """

    def __init__(self, target: TopKTarget, cut: Cut) -> None:
        # Places without a token count as nothing in any divergence: both sides have -inf there.
        self._empty_Nk = (target.ids_Nk == NO_TOKEN) & target.logprobs_Nk.isneginf()
        self._empty_Nk[:, 0] = False
        self.ids_Nk = torch.where(self._empty_Nk, target.ids_Nk[:, :1], target.ids_Nk)
        check_token_ids("ids_Nk", self.ids_Nk, cut.vocab)
        _check_distinct(target.ids_Nk)
        self.outside_N = cut.vocab - (~self._empty_Nk).sum(1)
        self.teacher_NW = _teacher_buckets(target, self.outside_N).to(cut.dtype)

    def student_(self, logits_BV: Tensor, rows: slice) -> Tensor:
        """The student's bucket logits [B, k + 1], the tail's being the log of its sum of exp.

        ``logits_BV`` is overwritten: it then holds each token's share of the tail, 0 inside.
        """
        ids_Bk = self.ids_Nk[rows]
        support_Bk = logits_BV.gather(1, ids_Bk).masked_fill_(self._empty_Nk[rows], -torch.inf)
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
        # An empty place has the row's first id, and so must write what that one does.
        own_Bk = torch.where(self._empty_Nk[rows], gradient_BW[:, :1], gradient_BW[:, :-1])
        shares_BV.scatter_(1, self.ids_Nk[rows], own_Bk)


def _teacher_buckets(target: TopKTarget, outside_N: Tensor) -> Tensor:
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
    log_tail_N1 = tail_N1.clamp(min=MIN_TAIL_MASS).log()
    log_tail_N1[outside_N == 0] = -torch.inf  # nothing is in the tail, on either side
    return torch.cat((logprobs_Nk, log_tail_N1), dim=1)


def _check_distinct(ids_Nk: Tensor) -> None:
    """Whether every row names an id once: else its mass would be counted twice.

    Raises:
        ValueError: one does not.
    """
    ordered_Nk = ids_Nk.sort(dim=1).values
    repeated = (ordered_Nk[:, 1:] == ordered_Nk[:, :-1]) & (ordered_Nk[:, 1:] != NO_TOKEN)
    if repeated.any():
        row, column = repeated.nonzero()[0].tolist()
        raise ValueError(f"ids_Nk row {row} holds id {int(ordered_Nk[row, column])} more than once")
