"""Trainer ranks in processes that outlive one engine, so that many set-ups share them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from operator import attrgetter
from typing import Any

import numpy as np
from quick_compiler import quick_compiler

from actors.process import trainer_environment
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import LossSettings, StudentSettings, TrainerSettings
from opd_ray.types import HeadPart


class Ranks:
    """A process group of ``world_size`` processes; :meth:`start` gives it a new engine."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        with socket.socket() as probe:
            probe.bind(("", 0))
            self._port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        before = dict(os.environ)
        os.environ.update(trainer_environment(TrainerSettings(threads=1)) | quick_compiler())
        self._lines, self._processes = [], []
        for _ in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._lines.append(ours)
            self._processes.append(process)
        os.environ.clear()
        os.environ.update(before)

    def start(
        self,
        folder: Any,
        trainer: TrainerSettings,
        loss: LossSettings | None = None,
        *,
        vocab_size: int,
        head: np.ndarray | None = None,
        lagged: bool = False,
        lora: LoraSettings | None = None,
    ) -> None:
        trainer = replace(trainer, ranks=self.world_size)
        keywords = {"vocab_size": vocab_size, "lagged": lagged}
        student = StudentSettings(path=str(folder), lora=lora or LoraSettings())
        settings = (student, trainer, loss or LossSettings())
        _raise_first(
            self._ask(
                "start",
                [
                    (self._port, settings, {"rank": rank, **keywords})
                    for rank in range(self.world_size)
                ],
            )
        )
        if head is not None:
            self.call("set_teacher_head", (HeadPart(head),))

    def call(self, method: str, *args: Any) -> list[Any]:
        """The same arguments to every rank."""
        return self.call_each(method, [args] * self.world_size)

    def call_each(self, method: str, args: Sequence[tuple]) -> list[Any]:
        """Arguments of its own for every rank; raises the first rank's exception."""
        return _raise_first(self.outcomes(method, args))

    def outcomes(self, method: str, args: Sequence[tuple]) -> list[Any]:
        """Each rank's result, or the exception it raised."""
        return self._ask("call", [(method, *own) for own in args])

    def weights(self) -> dict[str, np.ndarray]:
        """What rank 0 gathered."""
        return _raise_first(self._ask("weights", [()] * self.world_size))[0]

    def adapter(self) -> dict[str, np.ndarray]:
        """The same of the adapter alone."""
        return _raise_first(self._ask("adapter", [()] * self.world_size))[0]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _ask(self, what: str, args: Sequence[tuple]) -> list[Any]:
        for line, own in zip(self._lines, args, strict=True):
            line.send((what, own))
        return [line.recv() for line in self._lines]


@functools.cache
def shared_ranks(world_size: int) -> Ranks:
    """One process group for all test files; its processes end with this one."""
    return Ranks(world_size)


def _raise_first(outcomes: list[Any]) -> list[Any]:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def _serve(line: Connection) -> None:
    import torch

    from actors.trainer.trainer import Trainer

    torch.set_num_threads(1)
    trainer: Any = None
    while True:
        what, args = line.recv()
        try:
            result = None
            if what == "start":
                port, settings, keywords = args
                trainer = Trainer(*settings, master=("127.0.0.1", port), **keywords)
            elif what in ("weights", "adapter"):
                sent = getattr(trainer.engine, what)()
                result = {n: t.float().numpy().copy() for n, t in sent}
            else:
                result = attrgetter(args[0])(trainer)(*args[1:])
        except Exception as error:
            result = error
        line.send(result)
