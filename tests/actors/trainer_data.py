"""Random ragged rollouts with signals, and one gradient step worked out the plain way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from opd_ray.types import HiddenSignal, SampledSignal, Signal, TopKSignal, TrainItem

ROWS = 96  # of the student's head
VOCAB = 90  # of them stand for tokens
TEACHER_ROWS, TEACHER_HIDDEN = 92, 48
TOP_K = 5


def teacher_head(seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=0.3, size=(TEACHER_ROWS, TEACHER_HIDDEN)).astype(np.float32)


def ragged_items(count: int, seed: int = 0, kind: str = "hidden") -> tuple[list[TrainItem], dict]:
    """Items of 1 to 12 response tokens; one keeps nothing, one keeps everything."""
    rng = np.random.default_rng(seed)
    items, signals = [], {}
    for number in range(count):
        prompt = rng.integers(3, VOCAB, rng.integers(1, 9))
        response = rng.integers(3, VOCAB, rng.integers(1, 13))
        kept = rng.random(len(response)) < (0.0 if number == 1 else 1.0 if number == 2 else 0.6)
        rows = np.flatnonzero(kept).astype(np.int32)
        items.append(
            TrainItem(
                rollout_id=f"r{number}",
                prompt_ids=prompt.astype(np.int32),
                response_ids=response.astype(np.int32),
                rows=rows,
                weights=rng.uniform(0.2, 2.0, len(rows)).astype(np.float32),
                rollout_logprob=np.zeros(len(rows), np.float32),
            )
        )
        signals[f"r{number}"] = _signal(kind, len(rows), rng)
    return items, signals


def _signal(kind: str, rows: int, rng: np.random.Generator) -> Signal:
    if kind == "hidden":
        return HiddenSignal(rng.normal(size=(rows, TEACHER_HIDDEN)).astype(np.float32))
    logits = rng.normal(scale=3.0, size=(rows, VOCAB))
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    if kind == "sampled":
        return SampledSignal(logprobs[:, 0].astype(np.float32))
    ids = np.argsort(-logprobs, axis=-1)[:, :TOP_K]
    return TopKSignal(
        ids.astype(np.int32), np.take_along_axis(logprobs, ids, -1).astype(np.float32)
    )


def total_weight(items: Sequence[TrainItem]) -> float:
    return float(sum(item.weights.sum(dtype=np.float64) for item in items))


def share_out(
    items: Sequence[TrainItem], ranks: int, micro_batches: int
) -> list[list[list[TrainItem]]]:
    """``[rank][micro]``: dealt like cards."""
    return [
        [list(items[rank::ranks][micro::micro_batches]) for micro in range(micro_batches)]
        for rank in range(ranks)
    ]


def student_rows(model: Any, item: TrainItem) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities ``[n, VOCAB]`` at the kept rows and the sampled ids there."""
    prompt, response = torch.tensor(item.prompt_ids), torch.tensor(item.response_ids)
    logits = model(torch.cat([prompt, response])[None].long()).logits[0, :, :VOCAB]
    predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return predicted[item.rows], response.long()[item.rows]


def naive_loss(
    model: Any,
    items: Sequence[TrainItem],
    signals: Mapping[str, HiddenSignal],
    head: np.ndarray,
) -> tuple[torch.Tensor, np.ndarray]:
    """Mean reverse KL over all kept tokens, and the student's log-probabilities of them.

    One text at a time, unpadded, the model's own logits of all positions, log_softmax.
    """
    head_VD = torch.tensor(head, dtype=torch.float64)
    loss, logprobs = torch.zeros((), dtype=torch.float64), []
    for item in items:
        student, sampled = student_rows(model, item)
        hidden = torch.tensor(signals[item.rollout_id].hidden, dtype=torch.float64)
        teacher = (hidden @ head_VD.T)[:, :VOCAB].log_softmax(-1)
        divergence = (student.exp() * (student - teacher)).sum(-1)
        loss = loss + (torch.tensor(item.weights, dtype=torch.float64) * divergence).sum()
        logprobs.append(student.gather(-1, sampled[:, None])[:, 0].detach().numpy())
    return loss / total_weight(items), np.concatenate(logprobs)


def naive_step(folder: Path, *data: Any) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """Loss, gradients and log-probabilities of :func:`naive_loss`, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    loss, logprobs = naive_loss(model, *data)
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return loss.item(), gradients, logprobs
