"""How new weights get from the trainers to the rollout engines, and to teachers that follow."""

from __future__ import annotations

from typing import Protocol

from opd_ray.config.choices import SyncBackend
from opd_ray.config.schema import Config
from opd_ray.followers import Followers
from opd_ray.rollout_pool import RolloutPool
from opd_ray.trainer_group import TrainerGroup


class WeightSync(Protocol):
    """One transport."""

    def push(self, version: int, *, stepped: bool = False) -> None:
        """Put the trainers' current weights into every rollout engine, under this version.

        ``stepped``: an optimizer step has just made them, so teachers that follow take them in.
        """


class RaySync:
    """Through the Ray object store: CPU or GPU, any node."""

    def __init__(self, trainers: TrainerGroup, rollouts: RolloutPool, followers: Followers) -> None:
        self._trainers = trainers
        self._rollouts = rollouts
        self._followers = followers

    def push(self, version: int, *, stepped: bool = False) -> None:
        chunks = self._trainers.weights()
        self._rollouts.load_weights(chunks, version)
        if stepped and self._followers:
            self._followers.follow(chunks)


class NcclSync:
    """From GPU to GPU by vLLM's NCCL engine."""

    def __init__(
        self,
        trainers: TrainerGroup,
        rollouts: RolloutPool,
        followers: Followers,
        tensor_parallel_size: int,
    ) -> None:
        self._trainers = trainers
        self._followers = followers
        trainers.open_nccl(rollouts.handles, tensor_parallel_size)

    def push(self, version: int, *, stepped: bool = False) -> None:
        self._trainers.send_weights(version)
        if stepped and self._followers:
            self._followers.follow(self._trainers.weights())


def weight_sync(
    config: Config, trainers: TrainerGroup, rollouts: RolloutPool, followers: Followers
) -> WeightSync:
    """The transport that ``sync.backend`` names, connected."""
    if config.sync.backend == SyncBackend.nccl:
        split = config.rollout.tensor_parallel_size
        return NcclSync(trainers, rollouts, followers, split)
    return RaySync(trainers, rollouts, followers)
