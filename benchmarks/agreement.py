"""How two causal language models differ on one text, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.inference_mode()
def agreement(
    teacher: Any, student: Any, prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> tuple[float, int]:
    """KL(teacher || student) summed over a response's tokens, nats; and for how many of them both
    have the same likeliest token."""
    text_1L = torch.tensor([[*prompt_ids, *response_ids]])
    rows = slice(len(prompt_ids) - 1, -1)
    log_q_NV = teacher(text_1L).logits[0, rows].log_softmax(-1)
    log_p_NV = student(text_1L).logits[0, rows].log_softmax(-1)
    divergence = float((log_q_NV.exp() * (log_q_NV - log_p_NV)).sum())
    return divergence, int((log_q_NV.argmax(-1) == log_p_NV.argmax(-1)).sum())
