"""Checks that the arguments of one divergence or scoring call fit together."""

from __future__ import annotations

import torch
from torch import Tensor

from opd_ray.divergence.target import (
    HiddenTarget,
    LogitsTarget,
    MixtureTarget,
    Target,
    check_head,
    check_token_ids,
)


def check_call(
    hidden_ND: Tensor,
    head_VD: Tensor,
    bias_V: Tensor | None,
    target: Target,
    *,
    vocab_size: int | None,
    temperature: float,
    sampled_ids_N: Tensor | None,
) -> int:
    """The number of tokens in the vocabulary, or ValueError naming what does not fit."""
    check_head("student", hidden_ND, head_VD, bias_V)
    num_rows = hidden_ND.shape[0]
    if target.num_rows != num_rows:
        raise ValueError(
            f"the target has {target.num_rows} rows, hidden_ND {num_rows}: they must be the same "
            "tokens in the same order"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    vocab = _vocabulary(head_VD.shape[0], _teacher_rows(target), vocab_size)
    if sampled_ids_N is not None:
        if sampled_ids_N.shape != (num_rows,) or sampled_ids_N.dtype != torch.int64:
            raise ValueError(
                f"sampled_ids_N must be int64 [{num_rows}], not {sampled_ids_N.dtype} "
                f"{list(sampled_ids_N.shape)}"
            )
        check_token_ids("sampled_ids_N", sampled_ids_N, vocab)
    return vocab


def _teacher_rows(target: Target) -> int | None:
    """Vocabulary rows of the teacher, padding included; None where the target does not say."""
    if isinstance(target, HiddenTarget):
        return target.head_VD.shape[0]
    if isinstance(target, MixtureTarget):
        return target.parts[0].head_VD.shape[0]
    if isinstance(target, LogitsTarget):
        return target.logits_NV.shape[1]
    return None


def _vocabulary(student_rows: int, teacher_rows: int | None, vocab_size: int | None) -> int:
    if vocab_size is None:
        if teacher_rows is not None and teacher_rows != student_rows:
            raise ValueError(
                f"the student's head has {student_rows} rows, the teacher's {teacher_rows}: pass "
                "vocab_size, the number of rows that are tokens in both"
            )
        vocab_size = student_rows
    most = student_rows if teacher_rows is None else min(student_rows, teacher_rows)
    if not 1 <= vocab_size <= most:
        raise ValueError(f"vocab_size must lie between 1 and {most}, not {vocab_size}")
    return vocab_size
