"""What a weight transport is: one class whose three ends bring new weights to the rollout engines.

The driver's end, an instance, says when. The trainers' end, one on every rank, has the weights to
give away; the rollout actors' end puts them into the engine. The driver calls the other two by the
names of their methods, so no actor, pool or engine knows which transports there are.

A new one is a subclass in a file of its own, a name in :class:`opd_ray.config.choices.SyncBackend`
and a line in :mod:`actors.weights.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import ray
import torch

from opd_ray.config.schema import RolloutSettings

# Every weight whole, by name, anew at every call (:meth:`actors.trainer.engine.Engine.weights`): a
# collective of the trainer ranks, each of which must iterate to the end.
NamedWeights = Callable[[], Iterator[tuple[str, torch.Tensor]]]


class Trainers(Protocol):
    """All trainer ranks (:class:`opd_ray.pools.trainers.TrainerGroup`)."""

    def call_transport(self, method: str, *args: Any) -> list[Any]:
        """Call every rank's end and wait for all; the answers by rank."""

    def weights(self) -> list[ray.ObjectRef]:
        """References to the chunks of the current weights, in Ray's object store."""


class Rollouts(Protocol):
    """All rollout actors (:class:`opd_ray.pools.rollouts.RolloutPool`)."""

    @property
    def handles(self) -> list[Any]:
        """Ray's, for ends that reach each other past the driver."""

    def call_transport(self, method: str, *args: Any) -> list[Any]:
        """Call every actor's end and wait for all; references in ``args`` arrive as values."""


class UpdatedEngine(Protocol):
    """vLLM's calls of a weight update (:class:`actors.rollout.engine.RolloutEngine`)."""

    def init_weight_transfer(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def receive_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self, version: int) -> None: ...


@dataclass
class WeightTransport(ABC):
    """The driver's end of a transport, and the makers of the two others."""

    trainers: Trainers  # have loaded the student
    rollouts: Rollouts  # their engines were started with this transport's vllm_backend
    settings: RolloutSettings

    # The backend of vLLM's weight-transfer interface that loads the weights in its workers ...
    vllm_backend: ClassVar[str]
    # ... and, where vLLM does not bring it along, its module and class.
    vllm_engine: ClassVar[tuple[str, str] | None] = None
    # Whether it has :meth:`bring`, for actors that were started again after a push.
    brings_to_one: ClassVar[bool] = False
    # Whether the engines read the trainers' own memory while they take weights in.
    from_trainers_memory: ClassVar[bool] = False
    # Whether every rank, and not rank 0 alone, needs the weights whole.
    whole_on_every_rank: ClassVar[bool] = False

    def collect(self) -> Sequence[ray.ObjectRef] | None:
        """Take the weights from the trainers.

        Returns:
            References to chunks of them, if there are any on the way to the engines.
        """
        return None

    @abstractmethod
    def deliver(self, version: int, chunks: Sequence[ray.ObjectRef] | None) -> None:
        """Put what :meth:`collect` gave into every rollout engine, under this version."""

    def bring(self, handle: Any, version: int, chunks: Sequence[ray.ObjectRef]) -> ray.ObjectRef:
        """Have one rollout actor take in weights that all others have, in chunks.

        Returns:
            A reference that is ready once it has them.
        """
        raise NotImplementedError(f"{type(self).__name__} brings weights to all actors at once")

    @classmethod
    def trainer_end(cls, weights: NamedWeights, rank: int, chunk_bytes: int) -> Any:
        """What ``trainers.call_transport`` reaches on a rank; None: the driver calls no method.

        ``chunk_bytes`` may go in one piece.
        """
        return None

    @classmethod
    def engine_end(cls, engine: UpdatedEngine) -> Any:
        """What ``rollouts.call_transport`` reaches in an actor; as it is here, the engine."""
        return engine
