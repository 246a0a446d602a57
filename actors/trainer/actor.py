"""The Ray actor around one rank of the trainer."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from actors.process import LIFELINE_GROUP, Lifeline
from opd_ray.config.schema import LossSettings, StudentSettings, SyncSettings, TrainerSettings
from opd_ray.types import HeadPart, RolloutScores, Signal, TrainItem, TrainStats


@ray.remote(concurrency_groups={**LIFELINE_GROUP, "rank": 1})
class TrainerActor(Lifeline):
    """One rank; :class:`actors.trainer.trainer.Trainer` has the details of every method.

    Start it with :func:`actors.process.trainer_environment`. All methods of the engine
    run in one thread, because its current GPU is a property of the thread.

    Args: as the trainer's, and ``sync`` for the size of weight chunks.
    """

    def __init__(
        self,
        student: StudentSettings,
        trainer: TrainerSettings,
        loss: LossSettings,
        sync: SyncSettings,
        *,
        rank: int,
        world_size: int,
        vocab_size: int,
    ) -> None:
        from actors.trainer.trainer import Trainer

        self._trainer = Trainer(
            student, trainer, loss, rank=rank, world_size=world_size, vocab_size=vocab_size
        )
        self._rank = rank
        self._chunk_bytes = sync.chunk_bytes

    def address(self) -> tuple[str, int]:
        """This node's address and a port that is free now; rank 0's is where all ranks meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    @ray.method(concurrency_group="rank")
    def setup(self, master_address: str, master_port: int) -> None:
        """Returns once all ranks have met and the engine is up."""
        self._trainer.setup(master_address, master_port)

    @ray.method(concurrency_group="rank")
    def set_teacher_head(self, head: Sequence[HeadPart], teacher: str = "teacher") -> None:
        """Keep a teacher's output head; give a reference to it."""
        self._trainer.set_teacher_head(head, teacher)

    @ray.method(concurrency_group="rank")
    def train_step(
        self,
        micro_batches: Sequence[Sequence[TrainItem]],
        total_weight: float,
        learning_rate: float,
        *signal_maps: Mapping[str, Signal],
    ) -> TrainStats:
        """One optimizer step; give references to the signal maps."""
        return self._trainer.train_step(micro_batches, total_weight, learning_rate, *signal_maps)

    @ray.method(concurrency_group="rank")
    def score(
        self, micro_batches: Sequence[Sequence[TrainItem]], *signal_maps: Mapping[str, Signal]
    ) -> list[RolloutScores]:
        """Exact scores of the items' rows; give references to the signal maps."""
        return self._trainer.score(micro_batches, *signal_maps)

    @ray.method(concurrency_group="rank")
    def weights(self) -> list[ray.ObjectRef]:
        """References to the chunks of the weights from rank 0, none from the others."""
        return [ray.put(chunk) for chunk in self._trainer.weight_chunks(self._chunk_bytes)]

    @ray.method(concurrency_group="rank")
    def open_nccl(self, handles: Sequence[Any], tensor_parallel_size: int) -> None:
        """Meet the rollout engines' workers."""
        self._trainer.open_nccl(handles, tensor_parallel_size)

    @ray.method(concurrency_group="rank")
    def send_weights(self, version: int) -> None:
        """Send the weights to every rollout engine over NCCL."""
        self._trainer.send_weights(version)

    @ray.method(concurrency_group="rank")
    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint."""
        self._trainer.save(folder)

    @ray.method(concurrency_group="rank")
    def load(self, folder: str) -> None:
        """Read this rank's part of a checkpoint."""
        self._trainer.load(folder)

    @ray.method(concurrency_group="rank")
    def export(self, folder: str) -> None:
        """Write the student as a Hugging Face folder (rank 0 does)."""
        self._trainer.export(folder)

    def peak_memory(self) -> int:
        """High-water mark of this rank's memory, bytes."""
        return self._trainer.peak_memory()
