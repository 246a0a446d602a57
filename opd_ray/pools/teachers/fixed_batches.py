"""Batches for teachers that follow from the rollouts and their order alone (run.deterministic)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from opd_ray.pools.teachers.queue import Task


@dataclass(eq=False)
class _Group:
    """Rollouts that follow one another among those of a step; batches are cut out of it."""

    ids: Sequence[str]
    missing: set[str]  # neither here nor skipped
    tasks: dict[str, Task] = field(default_factory=dict)


class FixedBatches:
    """A queue in which nothing depends on who is done first.

    What is to come is announced in its order, and cut into groups of equal number. A group is cut
    into batches within the token budget once all of it is there. Whichever replica takes a batch
    and whenever, it reads the same rollouts in the same order; after a death the same batch is
    asked again, with those in it that nobody wants any more.

    Args:
        batch_tokens: prompt and response tokens of one batch; a longer rollout goes alone.
        groups: into how many what is announced is cut.
    """

    def __init__(self, batch_tokens: int, groups: int) -> None:
        self._batch_tokens = batch_tokens
        self._groups = groups
        self._group_of: dict[str, _Group] = {}  # by rollout, of those that are not whole
        self._batch_of: dict[str, list[Task]] = {}  # by rollout, of what was announced last
        self._ready: deque[list[Task]] = deque()
        self.tokens = 0  # of what has come and was not given out

    def __len__(self) -> int:
        """Batches that a replica could be given now."""
        return len(self._ready)

    def expect(self, rollout_ids: Sequence[str]) -> None:
        """Announce what comes next, in its order; what was announced before and is missing is not
        waited for any more."""
        self._group_of, self._batch_of = {}, {}
        self.tokens = sum(task.tokens for batch in self._ready for task in batch)
        size = max(1, -(-len(rollout_ids) // self._groups))
        for first in range(0, len(rollout_ids), size):
            ids = rollout_ids[first : first + size]
            group = _Group(ids, set(ids))
            self._group_of |= dict.fromkeys(ids, group)

    def skip(self, rollout_id: str) -> None:
        """Of this rollout there is nothing to score."""
        group = self._group_of[rollout_id]
        group.missing.remove(rollout_id)
        self._cut(group)

    def append(self, task: Task) -> None:
        """Queue a task that was announced, or one in place of another that was lost.

        Raises:
            KeyError: it was not announced.
        """
        group = self._group_of.get(task.rollout_id)
        if group is None:
            self._replace(task)
            return
        group.tasks[task.rollout_id] = task
        group.missing.discard(task.rollout_id)
        self.tokens += task.tokens
        self._cut(group)

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Put the batches of these tasks in front, each whole and as it was."""
        whole = [*{id(task.batch): task.batch for task in tasks}.values()]
        # One of which a part is lost comes when that is there again.
        whole = [batch for batch in whole if not _waits(batch)]
        self._ready.extendleft(reversed(whole))
        self.tokens += sum(task.tokens for batch in whole for task in batch)

    def next_batch(self, *, busy: bool, free: int) -> list[Task]:
        """What a replica should be given, whatever others do; nothing unless a batch is ready."""
        if not self._ready:
            return []
        batch = self._ready.popleft()
        self.tokens -= sum(task.tokens for task in batch)
        return batch

    def remove(self, rollout_ids: Iterable[str]) -> set[str]:
        """Those that were taken out: none, as the others of their batches would round otherwise."""
        return set()

    def lose(self, rollout_ids: Iterable[str]) -> set[str]:
        """Those of these that were not given out: their batches wait for others in their place."""
        wanted, lost = set(rollout_ids), set()
        for key in wanted & self._group_of.keys():
            group = self._group_of[key]
            if task := group.tasks.pop(key, None):
                group.missing.add(key)
                self.tokens -= task.tokens
                lost.add(key)
        for batch in [*self._ready]:
            if gone := [task for task in batch if task.rollout_id in wanted and not task.dropped]:
                self._ready.remove(batch)
                self.tokens -= sum(task.tokens for task in batch)
                lost.update(task.rollout_id for task in gone)
        return lost

    def _replace(self, task: Task) -> None:
        """Put a task in the place of the lost one of its batch, which is asked once it is whole."""
        batch = task.batch or self._batch_of[task.rollout_id]
        place = [one.rollout_id for one in batch].index(task.rollout_id)
        batch[place], task.batch = task, batch
        if not _waits(batch):
            self._ready.append(batch)
            self.tokens += sum(one.tokens for one in batch)

    def _cut(self, group: _Group) -> None:
        """Batches of a group, if it is whole."""
        if group.missing:
            return
        batch: list[Task] = []
        used = 0
        for key in group.ids:
            del self._group_of[key]
            task = group.tasks.get(key)
            if task is None:
                continue
            if batch and used + task.tokens > self._batch_tokens:
                self._ready.append(batch)
                batch, used = [], 0
            task.batch = self._batch_of[key] = batch
            batch.append(task)
            used += task.tokens
        if batch:
            self._ready.append(batch)


def _waits(batch: Sequence[Task]) -> bool:
    """Whether a batch cannot be asked yet, as a rollout of it is being written again."""
    return any(task.lost and not task.dropped for task in batch)
