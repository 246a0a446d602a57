"""The Ray actor around one rank of the trainer."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import ray

from actors.lifeline import LIFELINE_GROUP, Lifeline
from actors.process import compute_reproducibly, keep_to_share
from actors.run_folder import require_run_folder
from actors.weights.chunks import pack
from actors.weights.registry import TRANSPORTS
from opd_ray.checksums import FileSum
from opd_ray.config.choices import LoraForm
from opd_ray.config.schema import LossSettings, StudentSettings, SyncSettings, TrainerSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import Asleep, ConnectionLost, is_known
from opd_ray.importing import importing
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo

# Methods that need nothing of what a sleeping rank has given back.
_WHILE_ASLEEP = ("sleep", "wake", "set_teacher_head")


@contextmanager
def _collective() -> Iterator[None]:
    """A call of all ranks inside says so where it no longer reaches the others.

    Raises:
        ConnectionLost: their connection broke, most likely as one of them died.
    """
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        # Gloo raises nothing more particular; its messages begin with the place in its source.
        if is_known(error) or not (isinstance(error, DistError) or "/gloo/" in str(error)):
            raise
        raise ConnectionLost(f"no connection to the other ranks: {error}") from error


@ray.remote(concurrency_groups={**LIFELINE_GROUP, "rank": 1, "writing": 1, "beside": 1})
class TrainerActor(Lifeline):
    """One rank; :class:`actors.trainer.trainer.Trainer` does the work.

    Start it with :func:`actors.process.trainer_environment`. All methods of the engine
    run in one thread, because its current GPU is a property of the thread.

    Args: as the trainer's, ``sync`` for how weights leave it, ``deterministic``: torch rounds the
        same every time, and ``gpu_share``: of a GPU's memory, which is all that it may take.
    """

    def __init__(
        self,
        student: StudentSettings,
        trainer: TrainerSettings,
        loss: LossSettings,
        sync: SyncSettings,
        *,
        rank: int,
        vocab_size: int,
        lagged: bool = False,
        deterministic: bool = False,
        seed: int = 0,
        gpu_share: float = 1.0,
    ) -> None:
        with importing():
            from actors.trainer.trainer import Trainer

        self._gpu_share = gpu_share
        self._is_up = threading.Event()
        self._answer_timeout_s = trainer.answer_timeout_s
        self._scoring_since: float | None = None
        if deterministic:
            compute_reproducibly()
        self._make_trainer = partial(
            Trainer,
            student,
            trainer,
            loss,
            rank=rank,
            vocab_size=vocab_size,
            lagged=lagged,
            seed=seed,
        )
        self._sends_adapter = student.lora.on and sync.lora is LoraForm.adapter
        self._rank = rank
        self._sync = sync

    def address(self) -> tuple[str, int]:
        """This node's address and a port that is free now; rank 0's is where all ranks meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    @ray.method(concurrency_group="rank")
    def setup(self, master_address: str, master_port: int) -> None:
        """Returns once all ranks have met and the engine is up."""
        require_run_folder()
        if self._gpu_share < 1.0:
            keep_to_share(self._gpu_share)
        with _collective():
            self._trainer = self._make_trainer(master=(master_address, master_port))
        transport = TRANSPORTS[self._sync.backend]
        weights = self._trainer.engine.weights
        if transport.whole_on_every_rank:
            weights = partial(weights, on_every_rank=True)
        self._transport_end = transport.trainer_end(weights, self._rank, self._sync.chunk_bytes)
        self._is_up.set()

    @ray.method(concurrency_group="beside")
    def up(self) -> float:
        """Returns once :meth:`setup` has: who asks from elsewhere may come before it.

        Returns:
            seconds that a call of this rank may take.
        """
        self._is_up.wait()
        return self._answer_timeout_s

    @ray.method(concurrency_group="rank")
    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the trainer, such as "train_step" or "engine.save".

        References among ``args`` arrive as what they refer to.

        Raises:
            Asleep: the rank is, and the method needs what it gave back.
        """
        if not (self._trainer.engine.awake or method in _WHILE_ASLEEP):
            raise Asleep(f"trainer rank {self._rank}", method)
        with _collective():
            return attrgetter(method)(self._trainer)(*args)

    @ray.method(concurrency_group="writing")
    def write_snapshot(self, folder: str) -> dict[str, FileSum]:
        """See :meth:`actors.trainer.engine.Engine.write_snapshot`; beside everything else."""
        return self._trainer.engine.write_snapshot(folder)

    @ray.method(concurrency_group="rank")
    def weights(self) -> list[ray.ObjectRef]:
        """References to the chunks of what engines get from rank 0, none from the others."""
        self._need_weights("the weights")
        with _collective():
            engine = self._trainer.engine
            weights = engine.adapter() if self._sends_adapter else engine.weights()
            if self._rank == 0:
                return [ray.put(chunk) for chunk in pack(weights, self._sync.chunk_bytes)]
            deque(weights, maxlen=0)
            return []

    @ray.method(concurrency_group="rank")
    def judge(
        self, settings: TeacherSettings, vocab_size: int | None, own_topk: int
    ) -> TeacherInfo:
        """Compute a teacher's answers from now on: the student's, with its adapter off."""
        from actors.teacher.kinds.students_base import AdapterOff
        from actors.trainer.adapter import adapter_off

        model = self._trainer.engine.student.model
        off = partial(adapter_off, model)
        self._base = AdapterOff(settings, model, off, vocab_size=vocab_size, own_topk=own_topk)
        return self._base.info()

    @ray.method(concurrency_group="rank")
    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """Answers of that teacher, between two calls of the trainer's."""
        self._scoring_since = time.monotonic()
        try:
            return self._base.score(requests)
        finally:
            self._scoring_since = None

    @ray.method(concurrency_group="beside")
    def scoring_seconds(self) -> float:
        """How long the call of :meth:`score` that is under way has taken; 0: none is."""
        since = self._scoring_since
        return 0.0 if since is None else time.monotonic() - since

    @ray.method(concurrency_group="rank")
    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The output layer of that teacher."""
        return self._base.output_head()

    @ray.method(concurrency_group="rank")
    def call_transport(self, method: str, *args: Any) -> Any:
        """Call this rank's end of the weight transport."""
        self._need_weights(f"weight transport, {method}")
        with _collective():
            return getattr(self._transport_end, method)(*args)

    def _need_weights(self, what: str) -> None:
        if not self._trainer.engine.weights_awake:
            raise Asleep(f"trainer rank {self._rank}", what)

    def peak_memory(self) -> int:
        """High-water mark of this rank's memory, bytes."""
        return self._trainer.peak_memory()
