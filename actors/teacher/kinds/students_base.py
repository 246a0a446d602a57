"""Kind ``self`` of a student that is trained as an adapter: the student with its adapter off.

There is no second copy of the weights: a trainer rank computes the answers with those it trains on,
between its steps. The replica in front of it checks them and holds the signals, as of any teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from transformers import PreTrainedModel

from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.protocol import TeacherError
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConnectionLost
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo

# How often a replica that waits for answers looks whether its rank is still at them.
_LOOK_SECONDS = 10.0


class AdapterOff(HfTeacher):
    """In the trainer's process: its model as a Hugging Face teacher, without the adapter.

    Args: as of :class:`HfTeacher`; ``model`` is the trainer's, whose weights are whole here, and
        ``adapter_off`` makes with blocks in which it computes without its adapter.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        model: PreTrainedModel,
        adapter_off: Callable[[], AbstractContextManager[None]],
        *,
        vocab_size: int | None = None,
        own_topk: int = 0,
    ) -> None:
        self._trained, self._adapter_off = model, adapter_off
        with self._computing():
            super().__init__(settings, vocab_size=vocab_size, own_topk=own_topk)

    def _load(self) -> PreTrainedModel:
        return self._trained

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Not torch.inference_mode(): what a model keeps from it could not be trained with.
        was_training = self._trained.training
        self._trained.eval()
        try:
            with torch.no_grad(), self._adapter_off():
                yield
        finally:
            self._trained.train(was_training)

    def close(self) -> None:
        """Leave the model to the trainer."""


class StudentsBase:
    """In a teacher replica: asks a trainer rank (see :class:`actors.teacher.protocol.Teacher`).

    Args: as :func:`actors.teacher.registry.make_teacher`; ``trainer`` is Ray's handle of the rank,
        which has its model.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        trainer: Any,
        *,
        vocab_size: int | None = None,
        own_topk: int = 0,
    ) -> None:
        self._settings, self._vocab_size, self._own_topk = settings, vocab_size, own_topk
        self.ask(trainer)

    def ask(self, trainer: Any) -> None:
        """Ask this rank from now on, which began anew; waits for it where it still loads."""
        self._trainer = trainer
        self._limit_s: float = self._call("up")
        self._info: TeacherInfo = self._call(
            "judge", self._settings, self._vocab_size, self._own_topk
        )

    def info(self) -> TeacherInfo:
        """What the student is."""
        return self._info

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """The rank's answers.

        Raises:
            ConnectionLost: it hangs.
        """
        ref = self._trainer.score.remote(list(requests))
        with self._asking():
            self._await(ref)
            # Arrays from Ray are views into its object store: one signal would keep a batch there.
            return copy.deepcopy(ray.get(ref))

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """As of :class:`HfTeacher`."""
        return self._call("output_head")

    def close(self) -> None:
        """Leave the rank to its training."""

    def _await(self, ref: ray.ObjectRef) -> None:
        """Returns once the rank has answered, or is gone.

        What it does for the run before it comes to the answer has a limit of its own, in the
        coordinator, and does not count.
        """
        while not ray.wait([ref], timeout=_LOOK_SECONDS)[0]:
            seconds = self._trainer.scoring_seconds.remote()
            ready, _ = ray.wait([ref, seconds], timeout=self._limit_s)
            if ref not in ready and not (ready and ray.get(seconds) <= self._limit_s):
                raise ConnectionLost(
                    "the trainer rank that computes its answers gave none for longer than "
                    f"trainer.answer_timeout_s = {self._limit_s:g} s"
                )

    def _call(self, method: str, *given: Any) -> Any:
        with self._asking():
            return ray.get(getattr(self._trainer, method).remote(*given))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except RayActorError as error:
            raise TeacherError(
                f"{self._settings.key}: the trainer rank that computes its answers is gone: {error}"
            ) from error
