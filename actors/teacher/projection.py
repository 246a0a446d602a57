"""From a model's last hidden states to a teacher's answer, for teachers that hold the model.

Rows meet the vocabulary a chunk at a time, so memory does not grow with tokens x vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    Signal,
    TeacherAnswer,
    TopK,
    TopKSignal,
)

# Float32 logits of one chunk of rows. Their exponentials take as much again, and half as much the
# original logits of bfloat16 weights.
CHUNK_BYTES = 1 << 27


def project(
    hidden_ND: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    sampled_N: np.ndarray,
    student_NK: np.ndarray,
    *,
    topk: int,
    vocab_size: int,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, np.ndarray]:
    """What the vocabulary is needed for, by name, one row a hidden state; float32, nats.

    Args:
        hidden_ND: what the output head multiplies.
        head: logits [n, V or more] of [n, D]; columns from ``vocab_size`` on are left out of the
            distribution. Its result is written over.
        sampled_N: the token that came next.
        student_NK: the student's top-K ids.
        topk: how many of the likeliest tokens are wanted; 0: none.
        vocab_size: V, tokens that are real.
        chunk_bytes: float32 logits alive at once.

    Returns:
        ``logprob`` [N], ``at_student_topk`` [N, K], ``entropy`` [N] and, if ``topk``, ``top_ids``
        (int32) and ``top_logprobs`` [N, topk], likeliest first.
    """
    sampled = torch.from_numpy(sampled_N).long().to(hidden_ND.device)
    student = torch.from_numpy(student_NK).long().to(hidden_ND.device)
    chunk_rows = max(1, chunk_bytes // (4 * vocab_size))
    chunks: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(hidden_ND), chunk_rows):
        rows = slice(start, start + chunk_rows)
        logits_CV = head(hidden_ND[rows])[:, :vocab_size].float()
        for name, values in _chunk(logits_CV, sampled[rows], student[rows], topk).items():
            chunks.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(values).numpy() for name, values in chunks.items()}


def widest_topk(settings: TeacherSettings, own_topk: int) -> int:
    """How many of the likeliest tokens the signal and the filter's rule need between them."""
    return max(settings.topk if settings.signal is SignalChoice.topk else 0, own_topk)


def answer_of(
    rollout_id: str, rows: dict[str, np.ndarray], settings: TeacherSettings, own_topk: int
) -> TeacherAnswer:
    """The answer that the rows of one rollout make.

    Args:
        rollout_id: whose.
        rows: as :func:`project` returns them, and ``hidden`` [m, D] in wire form for that signal.
        settings: ``signal`` and ``topk``.
        own_topk: how many of the likeliest tokens the answer names beside the signal; 0: none.
    """
    return TeacherAnswer(
        rollout_id=rollout_id,
        logprob=rows["logprob"],
        at_student_topk=rows["at_student_topk"],
        signal=_signal(rows, settings),
        entropy=rows["entropy"],
        topk=TopK(*_likeliest(rows, own_topk)) if own_topk else None,
    )


def _chunk(
    logits_CV: torch.Tensor, sampled_C: torch.Tensor, student_CK: torch.Tensor, topk: int
) -> dict[str, torch.Tensor]:
    logprobs_CV = logits_CV.sub_(logits_CV.logsumexp(dim=-1, keepdim=True))
    values = {
        "logprob": logprobs_CV.gather(1, sampled_C[:, None])[:, 0],
        "at_student_topk": logprobs_CV.gather(1, student_CK),
    }
    if topk:
        top = logprobs_CV.topk(topk, dim=-1)
        values["top_logprobs"], values["top_ids"] = top.values, top.indices.int()
    values["entropy"] = -torch.einsum("cv,cv->c", logprobs_CV.exp(), logprobs_CV)
    return values


def _signal(rows: dict[str, np.ndarray], settings: TeacherSettings) -> Signal:
    match settings.signal:
        case SignalChoice.hidden:
            return HiddenSignal(rows["hidden"])
        case SignalChoice.sampled:
            return SampledSignal(rows["logprob"])
        case SignalChoice.topk:
            return TopKSignal(*_likeliest(rows, settings.topk))


def _likeliest(rows: dict[str, np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of the ids and log-probabilities of the likeliest tokens, each [m, k]."""
    return (
        np.ascontiguousarray(rows["top_ids"][:, :k]),
        np.ascontiguousarray(rows["top_logprobs"][:, :k]),
    )
