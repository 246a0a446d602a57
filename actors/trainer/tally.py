"""What one rank adds up over the micro-batches of a gradient step."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.trainer.batch import MicroBatch


class StepTally:
    """Sums over kept tokens and trunk tokens; a few floats a kept token stay on the device."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.trunk_tokens = 0
        self.padding_tokens = 0
        self.rollout_ids: list[str] = []
        self._rows: list[int] = []
        empty = torch.zeros(0, device=device)
        self._weights = [empty]
        self._divergences = [empty]
        self._log_ratios = [empty]

    def add(self, batch: MicroBatch, divergence_N: Tensor, logprob_N: Tensor) -> None:
        """Count one micro-batch."""
        self.trunk_tokens += batch.ids_1T.numel()  # padding included
        self.padding_tokens += batch.padding_tokens
        if batch.is_empty:
            return
        self.rollout_ids += batch.rollout_ids
        self._rows += batch.rows_per_rollout
        self._weights.append(batch.weights_N)
        self._divergences.append(divergence_N)
        self._log_ratios.append(logprob_N - batch.rollout_logprob_N)

    @property
    def is_empty(self) -> bool:
        """No micro-batch was counted: every one has a trunk token."""
        return self.trunk_tokens == 0

    @property
    def kept_tokens(self) -> int:
        return sum(self._rows)

    @property
    def weight_sum(self) -> float:
        return float(torch.cat(self._weights).double().sum())

    @property
    def loss_sum(self) -> float:
        """Sum of weight x divergence, nats."""
        weights_N, divergence_N = torch.cat(self._weights), torch.cat(self._divergences)
        return float((weights_N.double() * divergence_N.double()).sum())

    def gap(self) -> tuple[float, float]:
        """Sum and maximum of |trainer's - rollout engine's| log-probability of sampled tokens."""
        gap_N = torch.cat(self._log_ratios).double().abs()
        return float(gap_N.sum()), float(gap_N.max()) if len(gap_N) else 0.0

    def ratios(self) -> tuple[float, float, float]:
        """Sums of log r, r and r^2; r is a token's probability, trainer's by rollout engine's."""
        log_ratio_N = torch.cat(self._log_ratios).double()
        return (
            float(log_ratio_N.sum()),
            float(log_ratio_N.exp().sum()),
            float((2 * log_ratio_N).exp().sum()),
        )

    def not_finite(self) -> list[str]:
        """Rollouts in which a divergence is NaN or infinite."""
        parts = torch.cat(self._divergences).cpu().split(self._rows)
        return [
            rollout_id
            for rollout_id, part in zip(self.rollout_ids, parts, strict=True)
            if not bool(part.isfinite().all())
        ]
