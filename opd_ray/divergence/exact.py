"""Exact scores of every token, without gradient: one chunked pass over the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from opd_ray.divergence.blocks import Cut, slices
from opd_ray.divergence.comparison import check_temperature
from opd_ray.divergence.kernels import jsd_, log_softmax_
from opd_ray.divergence.logits import LogitsSource, ProjectedLogits, teacher_logits
from opd_ray.divergence.target import SampledTarget, Target, TopKTarget, check_call
from opd_ray.divergence.topk_tail import TopKTail


@dataclass(frozen=True, eq=False)
class ExactScores:
    """Scores of N tokens, each [N], nats, float32 (float64 for float64 inputs).

    With a :class:`TopKTarget` the divergences are those of the coarser distributions (support plus
    tail), and what the target cannot know takes the teacher's tail mass to lie evenly on the
    tokens outside its support: ``teacher_logprob_N`` of a token there, and ``teacher_entropy_N``,
    which is then an upper bound. ``top1_agree_N`` goes by the likeliest token of the support: it is
    too often true where that is not the teacher's likeliest. Student-side scores are always exact.
    """

    entropy_N: Tensor  # H(P), student
    reverse_kl_N: Tensor  # KL(P||Q)
    forward_kl_N: Tensor  # KL(Q||P)
    jsd_N: Tensor  # Jensen-Shannon divergence, at most ln 2
    logprob_N: Tensor  # log P(sampled token)
    teacher_logprob_N: Tensor  # log Q(sampled token)
    teacher_entropy_N: Tensor  # H(Q)
    top1_agree_N: Tensor  # bool: the teacher's likeliest token is (one of) the student's likeliest


@torch.no_grad()
def exact_scores(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target: Target,
    *,
    sampled_ids_N: Tensor,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    bias_V: Tensor | None = None,
) -> ExactScores:
    """Scores of student P = softmax((hidden head^T + bias) / temperature) against teacher Q.

    Arguments, floors and errors are those of :func:`opd_ray.divergence.linear.linear_divergence`;
    sampled_ids_N: [N] int64, the tokens whose log-probabilities are wanted. Never holds logits of
    more than a chunk of rows.

    Raises:
        ValueError: a :class:`SampledTarget` too: one log-probability has no divergence.
    """
    if isinstance(target, SampledTarget):
        raise ValueError(
            "exact scores need the teacher's distribution, and a sampled-token target holds one "
            "log-probability of it: use a hidden, logits or top-k target"
        )
    vocab = check_call(
        hidden_ND,
        head_VD,
        bias_V,
        target,
        vocab_size=vocab_size,
        temperature=temperature,
        sampled_ids_N=sampled_ids_N,
    )
    cut = Cut.of(hidden_ND, vocab, chunk_size, temperature)
    student = ProjectedLogits(hidden_ND, head_VD, bias_V, cut)
    teacher: _FullTeacher | _TopKTeacher
    if isinstance(target, TopKTarget):
        check_temperature(target, temperature)
        teacher = _TopKTeacher(TopKTail(target, cut))
    else:
        teacher = _FullTeacher(teacher_logits(target, cut))
    empty_N = torch.empty(len(hidden_ND), dtype=cut.dtype, device=hidden_ND.device)
    columns = {field.name: torch.empty_like(empty_N) for field in fields(ExactScores)}
    scores = ExactScores(**columns | {"top1_agree_N": empty_N.bool()})
    for rows in slices(0, len(hidden_ND), cut.chunk):
        student.load(rows)
        teacher.load(rows)
        for part in slices(rows.start, rows.stop, cut.block):
            _score_block(scores, part, student.block(part), teacher, sampled_ids_N[part, None])
    return scores


def _score_block(
    scores: ExactScores,
    part: slice,
    logits_BV: Tensor,
    teacher: _FullTeacher | _TopKTeacher,
    ids_B1: Tensor,
) -> None:
    """Fill in the scores of a block of rows; overwrites the logits."""
    log_q_BW, of_teacher = teacher.block(part, ids_B1)
    scores.teacher_logprob_N[part] = of_teacher.logprob_B
    scores.teacher_entropy_N[part] = of_teacher.entropy_B
    scores.top1_agree_N[part] = logits_BV.gather(1, of_teacher.top1_B1)[:, 0] == logits_BV.amax(1)
    log_p_BV = log_softmax_(logits_BV)
    scores.logprob_N[part] = log_p_BV.gather(1, ids_B1)[:, 0]
    scores.entropy_N[part] = _entropy(log_p_BV)
    log_p_BW = teacher.student_(log_p_BV, part)
    p_BW, ratio_BW = log_p_BW.exp(), log_p_BW - log_q_BW
    # Below 0 by rounding alone.
    scores.reverse_kl_N[part] = (p_BW * ratio_BW).sum(1).clamp_(min=0.0)
    scores.forward_kl_N[part] = -(log_q_BW.exp() * ratio_BW).sum(1).clamp_(max=0.0)
    scores.jsd_N[part] = jsd_(log_p_BW, p_BW, log_q_BW, False).clamp_(min=0.0)


@dataclass(frozen=True, eq=False)
class _TeacherScores:
    """The scores of a block that concern the teacher alone."""

    logprob_B: Tensor  # of the sampled token
    entropy_B: Tensor
    top1_B1: Tensor  # id of its likeliest token


@dataclass(frozen=True, eq=False)
class _FullTeacher:
    """The teacher's distribution over the whole vocabulary."""

    logits: LogitsSource

    def load(self, rows: slice) -> None:
        self.logits.load(rows)

    def block(self, rows: slice, ids_B1: Tensor) -> tuple[Tensor, _TeacherScores]:
        """Log-probabilities [B, V] to compare with, and the teacher's own scores."""
        log_q_BV = log_softmax_(self.logits.block(rows))
        return log_q_BV, _TeacherScores(
            log_q_BV.gather(1, ids_B1)[:, 0],
            _entropy(log_q_BV),
            log_q_BV.argmax(1, keepdim=True),
        )

    def student_(self, log_p_BV: Tensor, rows: slice) -> Tensor:
        """The student's log-probabilities over the same outcomes: as they are."""
        return log_p_BV


class _TopKTeacher:
    """A support and its tail, which lies evenly on the tokens outside the support."""

    def __init__(self, buckets: TopKTail) -> None:
        self._buckets = buckets
        # log of 0 tokens is not needed: an empty tail has mass 0 and no sampled token in it.
        self._log_outside_N = buckets.outside_N.clamp(min=1).to(buckets.teacher_NW).log()

    def load(self, rows: slice) -> None:
        """Nothing to compute."""

    def block(self, rows: slice, ids_B1: Tensor) -> tuple[Tensor, _TeacherScores]:
        """Log-probabilities [B, k + 1] to compare with, and the teacher's own scores."""
        log_q_BW = log_softmax_(self._buckets.teacher_NW[rows].clone())
        ids_Bk = self._buckets.ids_Nk[rows]
        here_Bk = ids_Bk == ids_B1
        inside_B = log_q_BW[:, :-1].masked_fill(~here_Bk, -torch.inf).amax(1)
        log_tail_B, log_outside_B = log_q_BW[:, -1], self._log_outside_N[rows]
        return log_q_BW, _TeacherScores(
            torch.where(here_Bk.any(1), inside_B, log_tail_B - log_outside_B),
            _entropy(log_q_BW) + log_tail_B.exp() * log_outside_B,
            ids_Bk.gather(1, log_q_BW[:, :-1].argmax(1, keepdim=True)),
        )

    def student_(self, log_p_BV: Tensor, rows: slice) -> Tensor:
        """The student's log-probabilities over the same outcomes; overwrites its argument."""
        return log_softmax_(self._buckets.student_(log_p_BV, rows))


def _entropy(log_p_BW: Tensor) -> Tensor:
    """-sum P log P of each row, [B]."""
    return log_p_BW.exp().mul_(log_p_BW).sum(1).neg_()
