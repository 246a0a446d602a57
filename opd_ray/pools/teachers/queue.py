"""Rollouts that a teacher pool is responsible for, and the queue of those to be scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.teacher.protocol import TeacherError
from opd_ray.pools.teachers.replicas import Replica
from opd_ray.types import Rollout, ScoreRequest


@dataclass(eq=False)
class Task:
    """A rollout from its submission until its rows are taken or it is dropped."""

    request: ScoreRequest  # kept: it is asked again if the holder dies
    tokens: int  # of the prompt, and of the response up to its last token that is asked about
    since: float  # when it was queued, for the last time
    holder: Replica | None = None  # None: queued or being scored
    delivered: bool = False  # its scores went to the caller
    dropped: bool = False  # given up while being scored; in a fixed batch, no longer wanted
    batch: list[Task] = field(default_factory=list)  # that it always is in, if batches are fixed
    lost: bool = False  # its top-K is gone: to be submitted once more, or dropped

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        teacher_prompt_ids: np.ndarray | None,
        now: float,
        likeliest: int = 0,
    ) -> Task:
        """A finished rollout, queued ``now``, with the teacher's own prompt ([P] int32) if any.

        The teacher is asked about the tokens that the student wrote, and reads none behind the last
        of them.

        Raises:
            TeacherError: the student wrote no token of it, or it has no top-K for the teacher to
                score.
        """
        rows = rollout.rows
        if not len(rows):
            raise TeacherError(
                f"rollout {rollout.rollout_id!r}: the student wrote no token of its response, "
                "there is nothing to score"
            )
        if rollout.topk is None:
            raise TeacherError(
                f"rollout {rollout.rollout_id!r} has no record of the student's top-K"
            )
        read = int(rows[-1]) + 1
        request = ScoreRequest(
            rollout_id=rollout.rollout_id,
            prompt_ids=rollout.prompt_ids if teacher_prompt_ids is None else teacher_prompt_ids,
            response_ids=rollout.response_ids[:read],
            student_topk=rollout.topk,
            rows=None if len(rows) == read else rows,
            likeliest=likeliest,
        )
        return cls(request, len(request.prompt_ids) + len(request.response_ids), now)

    @property
    def rollout_id(self) -> str:
        return self.request.rollout_id


@dataclass
class Batch:
    """Tasks that one replica is scoring together."""

    replica: Replica
    tasks: list[Task]
    tokens: int
    sent: float  # when it was sent to it


class TaskQueue:
    """First come, first served; what a dead replica leaves behind comes first.

    Args:
        batch_tokens: prompt and response tokens of one batch; a longer rollout goes alone.
    """

    def __init__(self, batch_tokens: int) -> None:
        self._batch_tokens = batch_tokens
        self._tasks: deque[Task] = deque()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def expect(self, rollout_ids: Sequence[str]) -> None:
        """What comes next; it need not be known here."""

    def skip(self, rollout_id: str) -> None:
        """Of this rollout there is nothing to score."""

    def append(self, task: Task) -> None:
        """Queue a new task."""
        self._tasks.append(task)
        self.tokens += task.tokens

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Put tasks in front, in their order."""
        self._tasks.extendleft(reversed(tasks))
        self.tokens += sum(task.tokens for task in tasks)

    def next_batch(self, *, busy: bool, free: int) -> list[Task]:
        """The oldest tasks for a replica: at least one if it has no work, else a full batch.

        Args:
            busy: whether it has work.
            free: replicas without work, which share what there is.
        """
        if busy and self.tokens < self._batch_tokens:
            return []
        share = self._batch_tokens if busy else -(-self.tokens // free)
        budget = min(self._batch_tokens, share)
        batch: list[Task] = []
        used = 0
        while self._tasks and (not batch or used + self._tasks[0].tokens <= budget):
            batch.append(self._tasks.popleft())
            used += batch[-1].tokens
        self.tokens -= used
        return batch

    def lose(self, rollout_ids: Iterable[str]) -> set[str]:
        """Take out those of these rollouts that are queued; they come once more. Returns which."""
        return self.remove(rollout_ids)

    def remove(self, rollout_ids: Iterable[str]) -> set[str]:
        """Take out those of these rollouts that are queued; returns which."""
        wanted = set(rollout_ids)
        found = {task.rollout_id for task in self._tasks if task.rollout_id in wanted}
        if found:
            self._tasks = deque(task for task in self._tasks if task.rollout_id not in found)
            self.tokens = sum(task.tokens for task in self._tasks)
        return found
