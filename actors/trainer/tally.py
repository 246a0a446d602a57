"""What one rank adds up over the micro-batches of a gradient step."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.trainer.batch import MicroBatch


class StepTally:
    """Sums over kept tokens and trunk tokens; tensors stay on their device until asked for."""

    def __init__(self) -> None:
        self.trunk_tokens = 0
        self.padding_tokens = 0
        self._batches: list[tuple[MicroBatch, Tensor, Tensor]] = []

    def add(self, batch: MicroBatch, divergence_N: Tensor, logprob_N: Tensor) -> None:
        """Count one micro-batch."""
        self.trunk_tokens += batch.trunk_tokens
        self.padding_tokens += batch.padding_tokens
        if not batch.is_empty:
            self._batches.append((batch, divergence_N, logprob_N))

    @property
    def rollout_ids(self) -> list[str]:
        return [rollout_id for batch, _, _ in self._batches for rollout_id in batch.rollout_ids]

    @property
    def kept_tokens(self) -> int:
        return sum(len(batch.kept_N) for batch, _, _ in self._batches)

    @property
    def weight_sum(self) -> float:
        return sum(float(batch.weights_N.double().sum()) for batch, _, _ in self._batches)

    @property
    def loss_sum(self) -> float:
        """Sum of weight x divergence, nats."""
        return sum(
            float((batch.weights_N.double() * divergence_N.double()).sum())
            for batch, divergence_N, _ in self._batches
        )

    def gap(self) -> tuple[float, float]:
        """Sum and maximum of |trainer's - rollout engine's| log-probability of sampled tokens."""
        gaps = [
            (logprob_N - batch.rollout_logprob_N).abs() for batch, _, logprob_N in self._batches
        ]
        if not gaps:
            return 0.0, 0.0
        gap_N = torch.cat(gaps).double()
        return float(gap_N.sum()), float(gap_N.max())

    def not_finite(self) -> list[str]:
        """Rollouts in which a divergence is NaN or infinite."""
        found = []
        for batch, divergence_N, _ in self._batches:
            parts = divergence_N.split(list(batch.rows_per_rollout))
            for rollout_id, part in zip(batch.rollout_ids, parts, strict=True):
                if not bool(part.isfinite().all()):
                    found.append(rollout_id)
        return found
