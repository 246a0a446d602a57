"""A teacher that several runs share: a named actor in front, replicas of the teacher behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray
import torch

from actors.process import OPENMP_WAITING, teacher_environment
from actors.run_folder import require_run_folder
from actors.teacher.contract.answers import checked_head
from actors.teacher.protocol import AdaptableTeacher, Teacher, TeacherError, Wanted
from actors.teacher.registry import make_teacher
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo

# Calls that may wait at the front at once, over all runs.
MAX_CALLS = 64


@dataclass(frozen=True)
class ServingStats:
    """Account of a shared teacher since its start."""

    rollouts: int
    tokens: int  # prompt and response tokens scored
    busy_seconds: float  # wall time in which at least one replica had work
    waiting_calls: int  # being scored, or queued at a replica
    waiting_tokens: int


class TeacherHost:
    """The process of one replica: a teacher, loaded once, in the shapes that runs want.

    Args: as :func:`actors.teacher.registry.make_teacher`; ``settings.threads`` is at least 1.
    """

    def __init__(self, settings: TeacherSettings, vocab_size: int | None, own_topk: int) -> None:
        require_run_folder()
        torch.set_num_threads(settings.threads)
        self._own = Wanted(settings.signal, settings.topk, own_topk)
        teacher = make_teacher(settings, vocab_size=vocab_size, own_topk=own_topk)
        self._teachers: dict[Wanted, Teacher] = {self._own: teacher}

    def info(self, wanted: Wanted | None) -> TeacherInfo:
        """What the teacher says of itself; as it was configured where ``wanted`` is None."""
        return self._shaped(wanted).info()

    def score(self, requests: Sequence[ScoreRequest], wanted: Wanted | None) -> list[TeacherAnswer]:
        """One answer a request."""
        return self._shaped(wanted).score(requests)

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight [V, D] and bias [V] or None of the output layer, as ``to_array`` gives them."""
        return checked_head(self._teachers[self._own])

    def _shaped(self, wanted: Wanted | None) -> Teacher:
        wanted = wanted or self._own
        if wanted not in self._teachers:
            own = self._teachers[self._own]
            if isinstance(own, AdaptableTeacher):
                self._teachers[wanted] = own.adapted(wanted)
            elif (wanted.signal, wanted.own_topk) != (self._own.signal, self._own.own_topk) or (
                wanted.signal.value == "topk" and wanted.topk not in (0, self._own.topk)
            ):
                raise TeacherError(
                    f"teacher {own.info().name!r} is served for teacher.signal = "
                    f"{self._own.signal}, teacher.topk = {self._own.topk} and {self._own.own_topk} "
                    f"of its own likeliest tokens; this run wants {wanted.signal}, {wanted.topk} "
                    f"and {wanted.own_topk}: give both the same"
                )
            else:
                return own
        return self._teachers[wanted]


class SharedTeacher:
    """The named actor in front; every call goes to the replica with the least tokens to do.

    A replica whose process dies is started again by Ray, and its calls are asked again.

    Args:
        settings: of the teacher; ``replicas`` processes, each with ``cpus_per_replica`` Ray CPUs
            and ``gpus_per_replica`` GPUs, started again ``max_restarts`` times.
        vocab_size: real tokens that student and teacher share.
        own_topk: how many of its own likeliest tokens a call gets that does not say what it wants.
    """

    def __init__(self, settings: TeacherSettings, vocab_size: int | None, own_topk: int) -> None:
        host: Any = ray.remote(TeacherHost).options(
            num_cpus=settings.cpus_per_replica,
            num_gpus=settings.gpus_per_replica,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {**OPENMP_WAITING, **teacher_environment(settings)}},
            # A host holds nothing but the teacher: asked again, it answers the same.
            max_restarts=settings.max_restarts,
            max_task_retries=settings.max_restarts,
        )
        self._hosts = [
            host.remote(settings, vocab_size, own_topk) for _ in range(settings.replicas)
        ]
        self._outstanding = [0] * settings.replicas
        self._lock = threading.Lock()
        self._rollouts = self._tokens = self._waiting = 0
        self._busy_seconds, self._busy_since = 0.0, 0.0

    def ready(self) -> TeacherInfo:
        """Returns once every replica has loaded."""
        infos: list[TeacherInfo] = ray.get([host.info.remote(None) for host in self._hosts])
        return infos[0]

    def info(self) -> TeacherInfo:
        """What the teacher says of itself, as it was configured."""
        return self.info_as(None)

    def info_as(self, wanted: Wanted | None) -> TeacherInfo:
        """What it says of itself to a run that wants this of it."""
        return cast(TeacherInfo, ray.get(self._hosts[0].info.remote(wanted)))

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """One answer a request, as it was configured."""
        return self.score_as(requests, None)

    def score_as(
        self, requests: Sequence[ScoreRequest], wanted: Wanted | None
    ) -> list[TeacherAnswer]:
        """One answer a request, as the run wants it; as it was configured where that is None."""
        tokens = sum(len(r.prompt_ids) + len(r.response_ids) for r in requests)
        with self._lock:
            if not self._waiting:
                self._busy_since = time.monotonic()
            self._waiting += 1
            index = min(range(len(self._hosts)), key=self._outstanding.__getitem__)
            self._outstanding[index] += tokens
        try:
            answers: list[TeacherAnswer] = ray.get(
                self._hosts[index].score.remote(list(requests), wanted)
            )
        finally:
            with self._lock:
                self._outstanding[index] -= tokens
                self._waiting -= 1
                if not self._waiting:
                    self._busy_seconds += time.monotonic() - self._busy_since
        with self._lock:
            self._rollouts += len(requests)
            self._tokens += tokens
        return answers

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight [V, D] and bias [V] or None of the output layer, as ``to_array`` gives them."""
        return cast(Any, ray.get(self._hosts[0].output_head.remote()))

    def stats(self) -> ServingStats:
        """The account so far."""
        with self._lock:
            busy = self._busy_seconds
            if self._waiting:
                busy += time.monotonic() - self._busy_since
            return ServingStats(
                rollouts=self._rollouts,
                tokens=self._tokens,
                busy_seconds=busy,
                waiting_calls=self._waiting,
                waiting_tokens=sum(self._outstanding),
            )
