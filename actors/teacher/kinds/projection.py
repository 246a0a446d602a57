"""From a model's last hidden states to a teacher's answer, for teachers that hold the model.

Rows meet the vocabulary a chunk at a time, so memory does not grow with tokens x vocabulary; what
is read off a chunk's logits goes in blocks that fit a processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import LOGITS_CHUNK_BYTES, TeacherSettings
from opd_ray.divergence.blocks import block_rows, likeliest, slices
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    Signal,
    TeacherAnswer,
    TopK,
    TopKSignal,
)


def project(
    hidden_ND: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    sampled_N: np.ndarray,
    student_NK: np.ndarray,
    *,
    topk: int,
    vocab_size: int,
    chunk_bytes: int = LOGITS_CHUNK_BYTES,
) -> dict[str, np.ndarray]:
    """What the vocabulary is needed for, by name, one row a hidden state; float32, nats.

    Args:
        hidden_ND: what the output head multiplies.
        head: logits [C, V or more] of [C, D]; columns from ``vocab_size`` on are left out of the
            distribution. Its result may be written over.
        sampled_N: the token that came next.
        student_NK: the student's top-K ids.
        topk: k, how many of the likeliest tokens are wanted; 0: none.
        vocab_size: V, tokens that are real.
        chunk_bytes: logits alive at once, counted as float32.

    Returns:
        ``logprob`` [N], ``at_student_topk`` [N, K], ``entropy`` [N] and, if ``topk``, ``top_ids``
        (int32) and ``top_logprobs`` [N, k], likeliest first.
    """
    sampled = torch.from_numpy(sampled_N).long().to(hidden_ND.device)
    student = torch.from_numpy(student_NK).long().to(hidden_ND.device)
    chunk_rows = max(1, chunk_bytes // (4 * vocab_size))
    chunks: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(hidden_ND), chunk_rows):
        rows = slice(start, start + chunk_rows)
        logits_CV = head(hidden_ND[rows])[:, :vocab_size]
        block = block_rows(len(logits_CV), vocab_size, logits_CV.device)
        for part in slices(0, len(logits_CV), block):
            read = _read(logits_CV[part].float(), sampled[rows][part], student[rows][part], topk)
            for name, values in read.items():
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
        rows: as :func:`project` returns them, and ``hidden`` [n, D] (``to_array``) for that signal;
            ``entropy`` may be missing.
        settings: ``signal`` and ``topk``; 0 makes an answer without a signal.
        own_topk: how many of the likeliest tokens the answer names beside the signal; 0: none.
    """
    return TeacherAnswer(
        rollout_id=rollout_id,
        logprob=rows["logprob"],
        at_student_topk=rows["at_student_topk"],
        signal=_signal(rows, settings),
        entropy=rows.get("entropy"),
        topk=TopK(*_likeliest(rows, own_topk)) if own_topk else None,
    )


def _read(
    logits_BV: torch.Tensor, sampled_B: torch.Tensor, student_BK: torch.Tensor, topk: int
) -> dict[str, torch.Tensor]:
    """What is wanted of a block of rows; the logits are written over."""
    logits_BV = logits_BV.sub_(logits_BV.amax(dim=-1, keepdim=True))
    probs_BV = logits_BV.softmax(dim=-1)
    # The likeliest token's logit is 0 now, so its probability is one over the sum.
    log_sum_B = -probs_BV.amax(dim=-1, keepdim=True).log()
    values = {
        "logprob": (logits_BV.gather(1, sampled_B[:, None]) - log_sum_B)[:, 0],
        "at_student_topk": logits_BV.gather(1, student_BK) - log_sum_B,
        "entropy": log_sum_B[:, 0] - probs_BV.mul_(logits_BV).sum(dim=-1),
    }
    if topk:
        top_logits_Bk, top_ids_Bk = likeliest(logits_BV, topk)
        values["top_logprobs"] = top_logits_Bk - log_sum_B
        values["top_ids"] = top_ids_Bk.int()
    return values


def _signal(rows: dict[str, np.ndarray], settings: TeacherSettings) -> Signal | None:
    match settings.signal:
        case SignalChoice.hidden:
            return HiddenSignal(rows["hidden"])
        case SignalChoice.sampled:
            return SampledSignal(rows["logprob"])
        case SignalChoice.topk:
            return TopKSignal(*_likeliest(rows, settings.topk)) if settings.topk else None


def _likeliest(rows: dict[str, np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of the ids and log-probabilities of the likeliest tokens, each [n, k]."""
    return (
        np.ascontiguousarray(rows["top_ids"][:, :k]),
        np.ascontiguousarray(rows["top_logprobs"][:, :k]),
    )
