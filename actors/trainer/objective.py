"""What the trainer asks of the student's head: the loss of a micro-batch, or its exact scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from actors.trainer.batch import MicroBatch
from opd_ray.config.schema import LossSettings
from opd_ray.divergence import (
    ExactScores,
    SampledTarget,
    Target,
    exact_scores,
    linear_divergence,
)
from opd_ray.types import RolloutScores

_SCORES = [field.name.removesuffix("_N") for field in fields(ExactScores)]


@dataclass(frozen=True)
class Objective:
    """The functions that a :class:`DivergenceHead` applies to its weight, given a micro-batch."""

    loss: LossSettings
    vocab_size: int  # rows of both heads that stand for tokens
    # Rollouts may be those of an older student, which the loss of sampled tokens has to weigh.
    lagged: bool = False

    def divergence(
        self,
        batch: MicroBatch,
        scale: float,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """sum(weight x divergence) x ``scale``, divergence_N and the student's logprob_N."""
        found = []
        for rows, target in _rows_of(batch):
            if self.lagged and isinstance(target, SampledTarget):
                target = replace(target, drawn_logprobs_N=batch.rollout_logprob_N[rows])
            part = linear_divergence(
                hidden_ND[rows],
                weight_VD,
                target,
                kind=self.loss.divergence,
                beta=self.loss.beta,
                temperature=self.loss.temperature,
                weights_N=batch.weights_N[rows] * scale,
                bias_V=bias_V,
                vocab_size=self.vocab_size,
                chunk_size=self.loss.chunk_rows,
                sampled_ids_N=batch.sampled_ids_N[rows],
            )
            assert part.logprob_N is not None  # because the sampled ids were given
            found.append((part.loss, part.divergence_N, part.logprob_N))
        losses, divergences, logprobs = zip(*found, strict=True)
        return torch.stack(losses).sum(), torch.cat(divergences), torch.cat(logprobs)

    def scores(
        self, batch: MicroBatch, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The fields of :class:`ExactScores`, ``[N]`` each, at temperature 1."""
        found = [
            exact_scores(
                hidden_ND[rows],
                weight_VD,
                target,
                sampled_ids_N=batch.sampled_ids_N[rows],
                vocab_size=self.vocab_size,
                chunk_size=self.loss.chunk_rows,
                bias_V=bias_V,
            )
            for rows, target in _rows_of(batch)
        ]
        return tuple(torch.cat([getattr(part, f"{name}_N") for part in found]) for name in _SCORES)


def _rows_of(batch: MicroBatch) -> Iterator[tuple[slice, Target]]:
    """Every target of a micro-batch with its rows.

    All of them are gone through within one call of the head, so that what the ranks do together
    does not depend on how many teachers a rank's rollouts have.
    """
    start = 0
    for target in batch.targets:
        yield slice(start, start + target.num_rows), target
        start += target.num_rows


def split_scores(batch: MicroBatch, columns: Sequence[Tensor]) -> list[RolloutScores]:
    """The columns of :meth:`Objective.scores` by rollout."""
    lengths = list(batch.rows_per_rollout)
    parts = [[part.numpy() for part in column.cpu().split(lengths)] for column in columns]
    return [
        RolloutScores(rollout_id, dict(zip(_SCORES, values, strict=True)))
        for rollout_id, *values in zip(batch.rollout_ids, *parts, strict=True)
    ]


def no_scores(rollout_id: str) -> RolloutScores:
    """The scores of a rollout without rows."""
    empty = dict.fromkeys(_SCORES, np.zeros(0, np.float32)) | {"top1_agree": np.zeros(0, bool)}
    return RolloutScores(rollout_id, empty)
