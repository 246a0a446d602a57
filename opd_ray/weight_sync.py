"""How new weights get from the trainers to the rollout engines."""

from __future__ import annotations

from typing import Protocol

from opd_ray.config.choices import SyncBackend
from opd_ray.config.schema import Config
from opd_ray.rollout_pool import RolloutPool
from opd_ray.trainer_group import TrainerGroup


class WeightSync(Protocol):
    """One transport."""

    def push(self, version: int) -> None:
        """Put the trainers' current weights into every rollout engine, under this version."""


class RaySync:
    """Through the Ray object store: CPU or GPU, any node."""

    def __init__(self, trainers: TrainerGroup, rollouts: RolloutPool) -> None:
        self._trainers = trainers
        self._rollouts = rollouts

    def push(self, version: int) -> None:
        self._rollouts.load_weights(self._trainers.weights(), version)


class NcclSync:
    """From GPU to GPU by vLLM's NCCL engine."""

    def __init__(
        self, trainers: TrainerGroup, rollouts: RolloutPool, tensor_parallel_size: int
    ) -> None:
        self._trainers = trainers
        trainers.open_nccl(rollouts.handles, tensor_parallel_size)

    def push(self, version: int) -> None:
        self._trainers.send_weights(version)


def weight_sync(config: Config, trainers: TrainerGroup, rollouts: RolloutPool) -> WeightSync:
    """The transport that ``sync.backend`` names, connected."""
    if config.sync.backend == SyncBackend.nccl:
        return NcclSync(trainers, rollouts, config.rollout.tensor_parallel_size)
    return RaySync(trainers, rollouts)
