"""From a block of student logits to its divergences and gradients, for each kind of target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from opd_ray.divergence.blocks import Cut
from opd_ray.divergence.kernels import Kernel, kernel_of, log_softmax_
from opd_ray.divergence.logits import LogitsSource, teacher_logits
from opd_ray.divergence.target import SampledTarget, Target, TopKTarget, check_token_ids
from opd_ray.divergence.topk_tail import TopKTail
from opd_ray.types import Divergence


class Comparison(ABC):
    """Compares the student with one target."""

    def load(self, rows: slice) -> None:  # noqa: B027  (few have something to load)
        """Called before the blocks of those rows (at most a chunk)."""

    @abstractmethod
    def block_(
        self, logits_BV: Tensor, rows: slice, sampled_B: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Values [B] and, if ``sampled_B`` is given, the student's log-probabilities of those ids.

        Overwrites ``logits_BV``; with ``gradient`` it then holds the gradient of each row's value
        with respect to its own logits.
        """


@dataclass(eq=False)
class FullVocabularyComparison(Comparison):
    """The exact divergence, from the teacher's logits over the whole vocabulary."""

    teacher: LogitsSource
    kernel: Kernel
    scratch_BV: Tensor

    def load(self, rows: slice) -> None:
        self.teacher.load(rows)

    def block_(
        self, logits_BV: Tensor, rows: slice, sampled_B: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        p_BV = torch.softmax(logits_BV, -1, out=self.scratch_BV[: len(logits_BV)])
        log_p_BV = log_softmax_(logits_BV)
        logprob_B = None if sampled_B is None else _at(log_p_BV, sampled_B)
        log_q_BV = log_softmax_(self.teacher.block(rows))
        value_B = self.kernel(log_p_BV, p_BV, log_q_BV, gradient)
        return value_B.clamp_(min=0.0), logprob_B  # below 0 by rounding alone


@dataclass(eq=False)
class TopKTailComparison(Comparison):
    """The divergence of the coarser distributions: the target's tokens and one tail bucket."""

    buckets: TopKTail
    kernel: Kernel

    def block_(
        self, logits_BV: Tensor, rows: slice, sampled_B: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        sampled_logit_B = None if sampled_B is None else _at(logits_BV, sampled_B)
        student_BW = self.buckets.student_(logits_BV, rows)
        logprob_B = None
        if sampled_logit_B is not None:
            logprob_B = sampled_logit_B - student_BW.logsumexp(-1)
        p_BW = student_BW.softmax(-1)
        log_p_BW = log_softmax_(student_BW)
        log_q_BW = log_softmax_(self.buckets.teacher_NW[rows].clone())
        value_B = self.kernel(log_p_BW, p_BW, log_q_BW, gradient)
        if gradient:
            self.buckets.spread_(log_p_BW, logits_BV, rows)
        return value_B.clamp_(min=0.0), logprob_B  # below 0 by rounding alone


class SampledComparison(Comparison):
    """log p(y) - log q(y) of the sampled token y, with the score-function gradient.

    Over y drawn from the student P, the value's mean is KL(P||Q), and the mean of
    (log p(y) - log q(y)) grad log p(y), the bracket held constant, is grad KL(P||Q): the further
    term of the derivative, E[grad log p(y)], is 0. (The derivative of the value itself would have
    mean 0 and teach nothing.) A single value may be negative.

    Tokens drawn from another distribution O, such as an older student's, have the importance ratio
    r(y) = P(y) / O(y) as a factor of value and gradient:

        grad KL(P||Q) = sum_y P(y) (log p(y) - log q(y)) grad log p(y)
                      = sum_y O(y) r(y) (log p(y) - log q(y)) grad log p(y),

    which is the mean over y drawn from O, if O gives 0 to no token that has mass in P. There is no
    further term of r: as grad r(y) = r(y) grad log p(y), this is the derivative of
    r(y) (log p(y) - log q(y)) with the bracket held constant. That of the bracket would add
    r(y) grad log p(y), whose mean is 0.
    """

    def __init__(self, target: SampledTarget, cut: Cut) -> None:
        check_token_ids("token_ids_N", target.token_ids_N, cut.vocab)
        self._ids_N = target.token_ids_N
        self._log_q_N = target.logprobs_N.to(cut.dtype)
        drawn_N = target.drawn_logprobs_N
        self._log_o_N = None if drawn_N is None else drawn_N.to(cut.dtype)

    def block_(
        self, logits_BV: Tensor, rows: slice, sampled_B: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        ids_B = self._ids_N[rows]
        log_p_BV = log_softmax_(logits_BV)
        logprob_B = None if sampled_B is None else _at(log_p_BV, sampled_B)
        log_p_B = _at(log_p_BV, ids_B)
        value_B = log_p_B - self._log_q_N[rows]
        if self._log_o_N is not None:
            value_B *= (log_p_B - self._log_o_N[rows]).exp()
        if gradient:  # value (onehot(y) - P)
            log_p_BV.exp_().mul_(-value_B[:, None])
            log_p_BV.scatter_add_(1, ids_B[:, None], value_B[:, None])
        return value_B, logprob_B


def comparison_of(
    target: Target, kind: Divergence, beta: float, cut: Cut, device: torch.device
) -> Comparison:
    """How rows compare with a target.

    Raises:
        ValueError: target, kind and temperature clash.
    """
    if isinstance(target, TopKTarget):
        check_temperature(target, cut.temperature)
        return TopKTailComparison(TopKTail(target, cut), kernel_of(kind, beta))
    if isinstance(target, SampledTarget):
        check_temperature(target, cut.temperature)
        if kind != Divergence.reverse_kl:
            raise ValueError(
                f"a sampled-token target estimates reverse_kl alone, not {kind}: it says nothing "
                "of the teacher's other tokens; use a top-k, hidden or logits target"
            )
        return SampledComparison(target, cut)
    scratch_BV = torch.empty(cut.block, cut.vocab, dtype=cut.dtype, device=device)
    return FullVocabularyComparison(teacher_logits(target, cut), kernel_of(kind, beta), scratch_BV)


def check_temperature(target: TopKTarget | SampledTarget, temperature: float) -> None:
    """Refuse what the teacher took at another temperature.

    Raises:
        ValueError: its log-probabilities were.
    """
    if target.temperature != temperature:
        raise ValueError(
            f"{type(target).__name__}.temperature is {target.temperature}, the divergence's is "
            f"{temperature}: log-probabilities of a few tokens cannot be moved to another "
            "temperature; ask the teacher at that temperature, or use a hidden or logits target"
        )


def _at(values_BV: Tensor, ids_B: Tensor) -> Tensor:
    """One value of each row, [B], copied."""
    return values_BV.gather(1, ids_B[:, None]).squeeze(1)
