"""Training on rollouts that are scored while the last ones of the step are being written.

The optimizer steps when all are in, so no weight moves before that: it is the step that there would
be without, in another order of sums. What makes it possible is a selection that is decided rollout
by rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from opd_ray.config.schema import TrainerSettings
from opd_ray.coordinator.metrics import StageClock
from opd_ray.errors import ConfigError
from opd_ray.pools.scorer import BatchUnderWay, ScoredRollout
from opd_ray.tip import TokenScores

# Of a round of micro-batches, one full on every rank: what a wave waits for. Trainers have nothing
# else to do, so half-filled micro-batches cost less than the wait for full ones.
ROUND_SHARE = 0.5
# Some functions round by where a value lies in its array: such weights are the same.
_ROUNDING = 1e-5


@dataclass
class WaveTraining:
    """The waves of one step: rollouts, as many as half fill a micro-batch on every rank."""

    trainer: TrainerSettings
    # Their scores, for the filter.
    scores: Callable[[Sequence[ScoredRollout]], TokenScores]
    # Weights of all tokens, [N] float32, 0 = dropped. None: that depends on the rest of the step.
    choose: Callable[[Sequence[ScoredRollout], TokenScores], np.ndarray | None]
    # Adds the gradients of the tokens that were chosen; weights [m] by rollout id.
    accumulate: Callable[[Sequence[ScoredRollout], Mapping[str, np.ndarray]], None]
    weights: dict[str, np.ndarray] = field(default_factory=dict)  # [m] by rollout id, of all waves
    count: int = 0

    def run(self, batch: BatchUnderWay, clock: StageClock) -> None:
        """Train on wave after wave until the batch is whole, or tokens cannot be chosen before.

        What is left then is in no wave.
        """
        whole_round = self.trainer.ranks * self.trainer.micro_batch_tokens
        while True:
            with clock.stage("rollout_and_teacher"):
                wave = batch.next_wave(math.ceil(ROUND_SHARE * whole_round))
            if not wave:
                return
            scores = self.scores(wave)
            with clock.stage("filter"):
                weights_N = self.choose(wave, scores)
                if weights_N is None:
                    return
                weights = by_rollout(wave, weights_N)
                self.weights |= weights
            with clock.stage("train"):
                self.accumulate(wave, weights)
            self.count += 1

    def check(self, weights: Mapping[str, np.ndarray]) -> None:
        """Compare what the waves chose with what was chosen once all were in.

        Args:
            weights: [m] by rollout id, of the whole step.

        Raises:
            ConfigError: the rule looks beyond a rollout, so its choice depends on which rollouts
                happen to be done.
        """
        for rollout_id, early_m in self.weights.items():
            weights_m = weights[rollout_id]
            if not np.allclose(early_m, weights_m, _ROUNDING, atol=0.0):
                early, later = np.count_nonzero(early_m), np.count_nonzero(weights_m)
                raise ConfigError(
                    f"run.overlap = true: of rollout {rollout_id} {early} tokens were chosen as "
                    f"soon as it was scored, and others, {later}, among all rollouts of the step: "
                    "tip.rule looks beyond the rollout; use a rule that does not, or "
                    "run.overlap=false"
                )


def by_rollout(scored: Sequence[ScoredRollout], values_N: np.ndarray) -> dict[str, np.ndarray]:
    """Values of all tokens, [N], by rollout, [m] each."""
    lengths = [len(one.rollout.response_ids) for one in scored]
    parts = np.split(values_N, np.cumsum(lengths)[:-1])
    return {one.rollout.rollout_id: part for one, part in zip(scored, parts, strict=True)}
