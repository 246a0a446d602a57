"""The Ray actor around one teacher replica."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ObjectLostError

from actors.lifeline import LIFELINE_GROUP, Lifeline
from actors.process import compute_reproducibly, keep_to_share, peak_memory_bytes
from actors.run_folder import require_run_folder
from actors.teacher.protocol import AskingTeacher, FollowingTeacher, TeacherError
from actors.teacher.registry import make_teacher
from actors.teacher.service import TeacherServer
from actors.weights.chunks import WeightChunk, unpack
from opd_ray.config.choices import Support
from opd_ray.config.resolved_teachers import Member
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import (
    HeadPart,
    RolloutScores,
    ScoreRequest,
    Signal,
    SignalReceipt,
    TeacherInfo,
    TopK,
    TopKLost,
)


# Signals are handed out beside the scoring: a trainer never waits for a batch to end.
@ray.remote(concurrency_groups={**LIFELINE_GROUP, "signals": 1})
class TeacherActor(Lifeline):
    """One replica of a teacher; :class:`actors.teacher.service.TeacherServer` has the details.

    Args: as :func:`actors.teacher.registry.make_teacher`; ``settings.threads`` is at least 1.
        ``deterministic``: torch rounds the same every time. With less than one GPU, torch takes no
        more of its memory than that share.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        vocab_size: int | None = None,
        own_topk: int = 0,
        members: Sequence[Member] = (),
        support: Support = Support.teacher,
        deterministic: bool = False,
        trainer: Any = None,
        sleeps: bool = False,
    ) -> None:
        self._deterministic = deterministic
        self._settings, self._support = settings, support
        self._make = partial(
            make_teacher,
            settings,
            vocab_size=vocab_size,
            own_topk=own_topk,
            members=members,
            support=support,
            trainer=trainer,
            sleeps=sleeps,
        )

    def ready(self) -> TeacherInfo:
        """Load the teacher, before any other call; what it is."""
        # Not in the constructor: Ray answers an error there with a crash of the process.
        require_run_folder()
        torch.set_num_threads(self._settings.threads)
        # A vLLM engine has kernels of its own.
        if self._deterministic and not self._settings.traits.vllm_engine:
            compute_reproducibly()
        if 0 < self._settings.gpus_per_replica < 1 and not self._settings.traits.vllm_engine:
            keep_to_share(self._settings.gpus_per_replica)
        self._teacher = self._make()
        self._server = TeacherServer(self._teacher, self._settings, self._support)
        return self._server.info()

    def score(self, requests: Sequence[ScoreRequest]) -> list[RolloutScores | TopKLost]:
        """Scores of each request, in order; ``student_topk`` may be a reference to a TopK.

        A request whose TopK died with the actor that recorded it is not scored. If the others are
        to round as they do beside it, it is read with them all the same.
        """
        topks: list[object] = [request.student_topk for request in requests]
        found = _fetched([topk for topk in topks if isinstance(topk, ray.ObjectRef)])
        whole: dict[str, ScoreRequest] = {}
        for request in requests:
            topk: object = request.student_topk
            if not isinstance(topk, ray.ObjectRef):
                whole[request.rollout_id] = request
            elif topk in found:
                whole[request.rollout_id] = replace(request, student_topk=found[topk])
        read = list(whole.values())
        lost = [request for request in requests if request.rollout_id not in whole]
        if self._deterministic and whole and lost:
            width = read[0].student_topk.ids.shape[1]
            whole |= {request.rollout_id: _with_any_topk(request, width) for request in lost}
            read = [whole[request.rollout_id] for request in requests]
        scores = self._server.score(read) if read else []
        by_id = {one.rollout_id: one for one in scores}
        if self._deterministic:
            given_up = [
                request.rollout_id for request in lost if by_id.pop(request.rollout_id, None)
            ]
            self._server.signals.forget(given_up)
        return [by_id.get(r.rollout_id) or TopKLost(r.rollout_id) for r in requests]

    def ask(self, trainer: Any) -> None:
        """Have a rank that began anew compute the answers of a :class:`StudentsBase`."""
        teacher = self._teacher
        if not isinstance(teacher, AskingTeacher):
            raise TeacherError(f"{self._settings.key} computes its answers itself")
        teacher.ask(trainer)

    @ray.method(concurrency_group="signals", num_returns=2)
    def take(
        self, keep: Mapping[str, np.ndarray], forget: bool = True
    ) -> tuple[dict[str, Signal], SignalReceipt]:
        """Kept rows ([n] int32) by rollout id, whose reference goes to a trainer, and a receipt.

        The receipt says that the rows no longer depend on this process.
        """
        signals = self._server.signals.take(keep, forget=forget)
        rows = sum(len(index) for index in keep.values())
        return signals, SignalReceipt(rows, sum(signal.nbytes for signal in signals.values()))

    @ray.method(concurrency_group="signals")
    def forget(self, rollout_ids: Sequence[str]) -> None:
        """Free signals that nobody will ask for."""
        self._server.signals.forget(rollout_ids)

    def forget_all(self) -> None:
        """Free every signal; in turn with the scoring: what was asked for before is free then."""
        self._server.signals.forget_all()

    @ray.method(concurrency_group="signals")
    def output_head(self) -> tuple[HeadPart, ...]:
        """The output layer, in one part, or one a member of an ensemble."""
        return self._server.output_head()

    def sleep(self) -> None:
        """Give the teacher's memory back, after what it is scoring; signals stay at hand."""
        self._server.sleep()

    def wake(self) -> None:
        """Take it again."""
        self._server.wake()

    def follow(self, *chunks: WeightChunk) -> None:
        """Move towards the student's new weights; give references to their chunks."""
        self._following().follow(pair for chunk in chunks for pair in unpack(chunk))

    def save(self, path: str) -> None:
        """Write the weights of a teacher that follows the student."""
        self._following().save(path)

    def load(self, path: str) -> None:
        """Read what :meth:`save` wrote."""
        self._following().load(path)

    def begin_anew(self) -> None:
        """Have a teacher that follows the student as it was when it was made."""
        self._following().begin_anew()

    def _following(self) -> FollowingTeacher:
        self._server.at_hand("its weights")
        if not isinstance(self._teacher, FollowingTeacher):
            raise TeacherError(f"{self._settings.key} does not follow the student's weights")
        return self._teacher

    @ray.method(concurrency_group="signals")
    def peak_memory(self) -> int:
        """Most main memory this process ever held, bytes."""
        return peak_memory_bytes()


def _with_any_topk(request: ScoreRequest, width: int) -> ScoreRequest:
    """A request with some top-K of that many tokens in the place of the one that is lost."""
    shape = (len(request.asked), width)
    ids = np.broadcast_to(np.arange(width, dtype=np.int32), shape)
    logprobs = np.full(shape, -1.0 - np.log(width), dtype=np.float32)
    return replace(request, student_topk=TopK(ids, logprobs))


def _fetched(refs: Sequence[ray.ObjectRef]) -> dict[ray.ObjectRef, TopK]:
    """What can be had, by reference; the rest is lost, with the processes that owned it."""
    try:
        return dict(zip(refs, ray.get(list(refs)), strict=True))
    except ObjectLostError:
        # Ray takes a second to find an owner dead: of all at once, not of one after the other.
        ray.wait(list(refs), num_returns=len(refs))
    found = {}
    for ref in refs:
        with suppress(ObjectLostError):
            found[ref] = ray.get(ref)
    return found
