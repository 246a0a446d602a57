"""The coordinator's side of the teachers: a queue of rollouts, shared out over replicas.

Knows no Ray: replicas are handles whose methods have ``.remote``, results come through ``get``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.teacher.protocol import TeacherError
from opd_ray.types import Rollout, RolloutScores, ScoreRequest


@dataclass(frozen=True)
class PoolStats:
    """Account of a pool since its start."""

    queued_rollouts: int
    queued_tokens: int
    in_flight_batches: int
    batches: int
    scored_rollouts: int
    scored_tokens: int  # prompt and response tokens
    waiting_seconds: float  # in the queue, summed over rollouts
    longest_wait_seconds: float
    batch_fill: float  # tokens a batch, as a share of the budget
    busy_seconds: float  # wall time in which at least one replica had work
    tokens_by_replica: dict[str, int]


@dataclass
class _Waiting:
    request: ScoreRequest
    tokens: int
    since: float


@dataclass(eq=False)
class _Replica:
    name: str
    handle: Any
    batches: int = 0
    outstanding_tokens: int = 0
    scored_tokens: int = 0


@dataclass
class _Batch:
    replica: _Replica
    rollout_ids: list[str]
    tokens: int


class TeacherPool:
    """Feeds rollouts to teacher replicas and remembers which replica holds which signal.

    A free replica takes what is queued, up to the token budget, shared with the other free ones; a
    busy one is given a second batch only when that is full, so batches grow under load and no
    replica waits for the coordinator. The replica with the least outstanding tokens comes first, so
    a slow one gets less.

    Args:
        replicas: (name, actor handle) pairs.
        batch_tokens: prompt and response tokens of one batch; a longer rollout goes alone.
        get: the value of a ready reference, given the reference and its replica's name.
        clock: seconds, for the account.
    """

    IN_FLIGHT = 2

    def __init__(
        self,
        replicas: Sequence[tuple[str, Any]],
        batch_tokens: int,
        get: Callable[[Any, str], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = [_Replica(name, handle) for name, handle in replicas]
        self._batch_tokens = batch_tokens
        self._get = get
        self._clock = clock
        self._queue: deque[_Waiting] = deque()
        self._queued_tokens = 0
        self._batches: dict[Any, _Batch] = {}
        self._holder: dict[str, _Replica | None] = {}  # None: queued or being scored
        self._abandoned: set[str] = set()  # dropped while being scored
        self._busy_since: float | None = None
        self._batch_count = self._scored_rollouts = self._scored_tokens = 0
        self._sent_tokens = 0
        self._waiting_seconds = self._longest_wait = self._busy_seconds = 0.0

    def submit(self, rollout: Rollout, teacher_prompt_ids: np.ndarray | None = None) -> None:
        """Queue a finished rollout.

        Args:
            rollout: with the student's top-K, or a reference to it.
            teacher_prompt_ids: [P] int32, where the teacher's prompt differs from the student's.

        Raises:
            TeacherError: the rollout is already here, or has no top-K for the teacher to score.
        """
        if rollout.rollout_id in self._holder or rollout.rollout_id in self._abandoned:
            raise TeacherError(f"rollout {rollout.rollout_id!r} was submitted twice")
        if rollout.topk is None:
            raise TeacherError(
                f"rollout {rollout.rollout_id!r} has no record of the student's top-K"
            )
        prompt_ids = rollout.prompt_ids if teacher_prompt_ids is None else teacher_prompt_ids
        request = ScoreRequest(
            rollout_id=rollout.rollout_id,
            prompt_ids=prompt_ids,
            response_ids=rollout.response_ids,
            student_topk=rollout.topk,
        )
        tokens = len(prompt_ids) + len(rollout.response_ids)
        self._queue.append(_Waiting(request, tokens, self._clock()))
        self._queued_tokens += tokens
        self._holder[rollout.rollout_id] = None

    def pump(self) -> None:
        """Send out as much of the queue as the replicas should have now."""
        while self._queue:
            free = [r for r in self._replicas if r.batches == 0]
            if free:
                budget = min(self._batch_tokens, -(-self._queued_tokens // len(free)))
                self._send(free[0], budget)
                continue
            open_ = [r for r in self._replicas if r.batches < self.IN_FLIGHT]
            if not open_ or self._queued_tokens < self._batch_tokens:
                return
            self._send(min(open_, key=lambda r: r.outstanding_tokens), self._batch_tokens)

    def pending_refs(self) -> list[Any]:
        """References of the batches that are out; give a ready one to :meth:`collect`."""
        return list(self._batches)

    def owner(self, ref: Any) -> str:
        """The name of the replica behind a pending reference."""
        return self._batches[ref].replica.name

    def collect(self, ref: Any) -> list[RolloutScores]:
        """The scores of a finished batch, rollouts dropped meanwhile left out.

        Raises:
            TeacherError: the replica answered for other rollouts than it was asked.
        """
        batch = self._batches[ref]
        replica = batch.replica
        scores: list[RolloutScores] = self._get(ref, replica.name)
        asked = batch.rollout_ids
        if [score.rollout_id for score in scores] != asked:
            raise TeacherError(
                f"{replica.name} answered for {[s.rollout_id for s in scores]}; asked were {asked}"
            )
        del self._batches[ref]
        replica.batches -= 1
        replica.outstanding_tokens -= batch.tokens
        replica.scored_tokens += batch.tokens
        self._scored_rollouts += len(asked)
        self._scored_tokens += batch.tokens
        if not self._batches and self._busy_since is not None:
            self._busy_seconds += self._clock() - self._busy_since
            self._busy_since = None
        unwanted = [key for key in asked if key in self._abandoned]
        if unwanted:
            replica.handle.forget.remote(unwanted)
            self._abandoned.difference_update(unwanted)
        wanted = [score for score in scores if score.rollout_id not in set(unwanted)]
        for score in wanted:
            self._holder[score.rollout_id] = replica
        return wanted

    def take(self, keep: Mapping[str, np.ndarray], *, forget: bool = True) -> list[Any]:
        """References to the kept rows ([n] int32 by rollout id), one a replica concerned.

        Each refers to a dict of rollout id to Signal. The replicas then forget these rollouts; one
        of which nothing is kept is only forgotten. With ``forget=False`` they hold on to every
        signal, for a second look.

        Raises:
            TeacherError: a rollout whose signal no replica holds.
        """
        by_replica: dict[_Replica, dict[str, np.ndarray]] = {}
        for rollout_id, rows in keep.items():
            replica = self._require_holder(rollout_id)
            if len(rows):
                by_replica.setdefault(replica, {})[rollout_id] = rows
        refs = [replica.handle.take.remote(rows, forget) for replica, rows in by_replica.items()]
        if forget:
            self.drop([rollout_id for rollout_id, rows in keep.items() if not len(rows)])
            for taken in by_replica.values():
                for rollout_id in taken:
                    del self._holder[rollout_id]
        return refs

    def drop(self, rollout_ids: Iterable[str]) -> None:
        """Give rollouts up, wherever they are: queued, being scored or held.

        Raises:
            TeacherError: a rollout that is not here.
        """
        wanted = set(rollout_ids)
        unknown = [key for key in wanted if key not in self._holder]
        if unknown:
            raise TeacherError(
                f"rollout {unknown[0]!r} is not with the teachers, cannot be dropped"
            )
        queued = {waiting.request.rollout_id for waiting in self._queue} & wanted
        if queued:
            self._queue = deque(w for w in self._queue if w.request.rollout_id not in queued)
            self._queued_tokens = sum(waiting.tokens for waiting in self._queue)
        by_replica: dict[_Replica, list[str]] = {}
        for rollout_id in wanted:
            replica = self._holder.pop(rollout_id)
            if replica is not None:
                by_replica.setdefault(replica, []).append(rollout_id)
            elif rollout_id not in queued:
                self._abandoned.add(rollout_id)
        for replica, ids in by_replica.items():
            replica.handle.forget.remote(ids)

    def stats(self) -> PoolStats:
        """The account so far."""
        busy = self._busy_seconds
        if self._busy_since is not None:
            busy += self._clock() - self._busy_since
        budget = self._batch_count * self._batch_tokens
        return PoolStats(
            queued_rollouts=len(self._queue),
            queued_tokens=self._queued_tokens,
            in_flight_batches=len(self._batches),
            batches=self._batch_count,
            scored_rollouts=self._scored_rollouts,
            scored_tokens=self._scored_tokens,
            waiting_seconds=self._waiting_seconds,
            longest_wait_seconds=self._longest_wait,
            batch_fill=self._sent_tokens / budget if budget else 0.0,
            busy_seconds=busy,
            tokens_by_replica={r.name: r.scored_tokens for r in self._replicas},
        )

    def _send(self, replica: _Replica, budget: int) -> None:
        """One batch, oldest rollouts first, at least one."""
        now = self._clock()
        requests: list[ScoreRequest] = []
        tokens = 0
        while self._queue and (not requests or tokens + self._queue[0].tokens <= budget):
            waiting = self._queue.popleft()
            requests.append(waiting.request)
            tokens += waiting.tokens
            waited = now - waiting.since
            self._waiting_seconds += waited
            self._longest_wait = max(self._longest_wait, waited)
        self._queued_tokens -= tokens
        self._batch_count += 1
        self._sent_tokens += tokens
        replica.batches += 1
        replica.outstanding_tokens += tokens
        if self._busy_since is None:
            self._busy_since = now
        ref = replica.handle.score.remote(requests)
        self._batches[ref] = _Batch(replica, [r.rollout_id for r in requests], tokens)

    def _require_holder(self, rollout_id: str) -> _Replica:
        replica = self._holder.get(rollout_id)
        if replica is None:
            state = "still queued or being scored" if rollout_id in self._holder else "not known"
            raise TeacherError(f"rollout {rollout_id!r} has no signal at a teacher: it is {state}")
        return replica
