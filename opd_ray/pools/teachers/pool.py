"""The coordinator's side of the teachers: rollouts shared out over replicas, each scored once.

Uses no Ray: replicas are handles whose methods have ``.remote``, results come through the watch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from actors.teacher.protocol import TeacherError
from opd_ray.errors import ActorDied
from opd_ray.pools.members import RestartPolicy
from opd_ray.pools.teachers.account import PoolStats
from opd_ray.pools.teachers.fixed_batches import FixedBatches
from opd_ray.pools.teachers.queue import Batch, Task, TaskQueue
from opd_ray.pools.teachers.replicas import Replica, Replicas
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import Rollout, RolloutScores, SignalReceipt, TopKLost

# Waits for a condition, which the text after it names.
Until = Callable[[Callable[[], bool], str], object]


class TeacherPool:
    """Feeds rollouts to teacher replicas and remembers which replica holds which signal.

    A free replica takes what is queued, up to the token budget, shared with the other free ones; a
    busy one is given a second batch only when that is full, so batches grow under load and no
    replica waits for the coordinator. The replica with the least outstanding tokens comes first, so
    a slow one gets less.

    A pool that computes where rollouts are written may be told to wait for the end of the writing:
    two processes with a thread a core each take longer at once than one after the other.

    When a replica's process dies, its rollouts are asked again elsewhere: those in its batches, and
    those whose scores are known but whose signals died with it. Every rollout's scores are
    delivered once. Another replica comes up in its place meanwhile, as often as allowed. One that
    owes an answer for too long is treated the same.

    A rollout whose top-K is lost, because the process that wrote it died, can be scored by no
    replica: it is to be submitted anew.

    Args:
        replicas: (name, actor handle) pairs.
        batch_tokens: prompt and response tokens of one batch; a longer rollout goes alone.
        watch: of the replicas' actors; their deaths end no wait from now on.
        policy: of replicas that die or hang.
        after_writing: send nothing out while rollouts are written, see :meth:`writing`.
        sleeps: whether its replicas give their memory back in between, see :meth:`sleep`; they are
            asleep already.
        fixed: batches follow from the rollouts that are announced and their order alone.
        clock: seconds, for the account.

    Attributes:
        deliver: gets every rollout's scores, while the watch waits for whatever it may be.
        lost: gets the ids of rollouts whose top-K a replica found lost, likewise.
        until: waits for rollouts to be scored again; where roles take turns, that is in another's.
    """

    IN_FLIGHT = 2
    deliver: Callable[[RolloutScores], object]
    lost: Callable[[list[str]], object]

    def __init__(
        self,
        replicas: Sequence[tuple[str, Any]],
        batch_tokens: int,
        watch: ActorWatch,
        policy: RestartPolicy,
        *,
        after_writing: bool = False,
        sleeps: bool = False,
        fixed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = Replicas(replicas, watch, policy, self._lose, self._pump_soon)
        self._watch = watch
        self._clock = clock
        self._new_queue = (
            partial(FixedBatches, batch_tokens, groups=self.IN_FLIGHT * len(replicas))
            if fixed
            else partial(TaskQueue, batch_tokens)
        )
        self._queue = self._new_queue()
        self._pumping = False  # whether a pump is to come
        self.until: Until = watch.wait_until
        self._after_writing = after_writing
        self._sleeps = sleeps
        if sleeps:
            self._replicas.lie_asleep()
        self._waits = False  # for the end of the writing
        self._batches: dict[Any, Batch] = {}
        self._tasks: dict[str, Task] = {}
        self._stats = PoolStats(clock, batch_tokens)

    def __contains__(self, rollout_id: str) -> bool:
        """Whether this pool is responsible for a rollout."""
        return rollout_id in self._tasks

    def expect(self, rollout_ids: Sequence[str]) -> None:
        """Announce the rollouts that are to be submitted or skipped next, in their order."""
        self._queue.expect(rollout_ids)

    def skip(self, rollout_id: str) -> None:
        """A rollout that was announced has nothing to score."""
        self._queue.skip(rollout_id)
        self._pump_soon()

    def submit(
        self,
        rollout: Rollout,
        teacher_prompt_ids: np.ndarray | None = None,
        likeliest: int = 0,
    ) -> None:
        """Queue a finished rollout; it is sent out while the watch waits.

        One whose top-K was lost may be submitted once more; scores that were delivered before are
        not delivered again.

        Args:
            rollout: with the student's top-K, or a reference to it.
            teacher_prompt_ids: [P] int32, where the teacher's prompt differs from the student's.
            likeliest: how many of the likeliest tokens come back beside its scores.

        Raises:
            TeacherError: the rollout is already here, or there is nothing of it to score
                (:meth:`Task.of`).
        """
        known = self._tasks.get(rollout.rollout_id)
        if known is not None and not known.lost:
            raise TeacherError(f"rollout {rollout.rollout_id!r} was submitted twice")
        task = Task.of(rollout, teacher_prompt_ids, self._clock(), likeliest)
        if known is not None:  # somebody may be waiting for it
            known.request, known.since, known.lost = task.request, task.since, False
            task = known
        self._tasks[rollout.rollout_id] = task
        self._queue.append(task)
        self._stats.queued(self._queue.tokens)
        self._pump_soon()

    def writing(self, going_on: bool) -> None:
        """Rollouts are being written from now on, or no longer."""
        self._waits = going_on and self._after_writing
        if not self._waits:
            self._pump_soon()

    def sleep(self) -> None:
        """Have the replicas give their memory back, after what they are scoring.

        What they hold for trainers stays at hand.
        """
        if self._sleeps:
            self._replicas.sleep()

    def wake(self) -> None:
        """Have them score again."""
        if self._sleeps:
            self._replicas.wake()
            self._replicas.woken()
            self._pump_soon()

    def pump(self) -> None:
        """Send out as much of the queue as the replicas should have now."""
        self._pumping = False
        while len(self._queue) and not (self._waits or self._replicas.asleep):
            replica = self._replicas.least_loaded()
            if replica is None or replica.batches == self.IN_FLIGHT:
                return
            tasks = self._queue.next_batch(busy=replica.batches > 0, free=self._replicas.free())
            if not tasks:
                return
            self._send(replica, tasks)

    def take(
        self, shares: Sequence[Mapping[str, np.ndarray]], *, forget: bool = True
    ) -> list[list[Any]]:
        """References to the kept rows of several trainers, of each one a replica concerned.

        Each refers to a dict of rollout id to Signal that outlives its replica's process. The
        replicas then forget these rollouts; one of which nothing is kept is only forgotten. With
        ``forget=False`` they hold on to every signal, for a second look.

        Args:
            shares: kept rows ([n] int32) by rollout id, for each trainer; a rollout is in one.
            forget: whether the replicas do.

        Raises:
            TeacherError: a rollout whose signal no replica holds.
            ActorFailure: the last replica died and may not be started again.
        """
        for rollout_id in chain(*shares):
            self._require_scored(rollout_id)
        wanted = [{key: rows for key, rows in share.items() if len(rows)} for share in shares]
        refs: list[list[Any]] = [[] for _ in shares]
        while any(wanted):
            for number, taken, holder, ref in self._take_held(wanted, forget):
                refs[number].append(ref)
                for rollout_id in taken:
                    del wanted[number][rollout_id]
                    if forget:
                        self._forget_taken(rollout_id, holder)
        if forget:
            self.drop([key for share in shares for key, rows in share.items() if not len(rows)])
        return refs

    def drop(self, rollout_ids: Iterable[str]) -> None:
        """Give rollouts up, wherever they are: queued, being scored or held.

        Raises:
            TeacherError: a rollout that is not here.
        """
        wanted = set(rollout_ids)
        for rollout_id in wanted:
            if rollout_id not in self._tasks or self._tasks[rollout_id].dropped:
                raise TeacherError(
                    f"rollout {rollout_id!r} is not with the teachers, cannot be dropped"
                )
        queued = self._queue.remove(wanted)
        by_replica: dict[Replica, list[str]] = {}
        for rollout_id in wanted:
            task = self._tasks[rollout_id]
            if task.holder is None and rollout_id not in queued and not task.lost:
                task.dropped = True
                continue
            self._let_go(task)
            if task.holder is not None:
                by_replica.setdefault(task.holder, []).append(rollout_id)
        for replica, ids in by_replica.items():
            replica.handle.forget.remote(ids)

    def lose(self, rollout_ids: Iterable[str]) -> list[str]:
        """The top-Ks of these rollouts are gone, as the process that wrote them is.

        Returns:
            Those that have not been sent out; they are to be submitted once more, or dropped. Of
            others :attr:`lost` tells, if no replica has read them in time.
        """
        queued = self._queue.lose(rollout_ids)
        for rollout_id in queued:
            self._tasks[rollout_id].lost = True
        return list(queued)

    def abandon(self) -> None:
        """Give up every rollout that is here: nothing more is delivered, and all is forgotten.

        The same rollouts may be submitted again at once: a replica forgets after the batches that
        it is scoring now, and before those that come.
        """
        for ref in [*self._batches]:
            self._close(ref)
        self._queue = self._new_queue()
        for task in [*self._tasks.values()]:
            self._let_go(task)
        self._waits = False
        self._stats.queued(0)
        for replica in self._replicas:
            # Answers of calls whose wait was left are never counted.
            replica.owes = 0
            replica.handle.forget_all.remote()

    def lose_source(self) -> None:
        """What replicas load from has ended: none is started until :meth:`begin_anew`."""
        self._replicas.lose_source()

    def begin_anew(self) -> None:
        """Start replicas that are coming up once more: what they load from has begun anew."""
        self._replicas.begin_anew()

    def living(self) -> list[tuple[str, Any]]:
        """(name, actor handle) of the replicas that can score, as far as is known."""
        return [(replica.name, replica.handle) for replica in self._replicas]

    def peak_memory(self) -> dict[str, int]:
        """Of every replica, by name, bytes."""
        return self._replicas.peak_memory()

    def open_account(self) -> None:
        """Let :meth:`stats` count from now on."""
        self._stats = self._stats.opened_anew()
        self._stats.queued(self._queue.tokens)

    def stats(self) -> PoolStats:
        """The account so far."""
        return self._stats.as_of_now(replica.name for replica in self._replicas)

    def _pump_soon(self) -> None:
        """After all that has happened already, so that batches are as full as they can be."""
        if not self._pumping:
            self._pumping = True
            self._watch.soon(self.pump)

    def _arrived(self, ref: Any) -> None:
        """A batch came back, or its replica died.

        Raises:
            TeacherError: the replica answered for other rollouts than it was asked.
            ActorFailure: a replica raised, or the last one died and may not be started again.
        """
        batch = self._batches.get(ref)
        if batch is None:
            return  # a death has made it void since it was ready
        try:
            value = self._watch.get(ref, batch.replica.name)
        except ActorDied as death:
            self._lose(batch.replica, death)
            return
        self._settle(ref, value)
        self._pump_soon()

    def _send(self, replica: Replica, tasks: list[Task]) -> None:
        """Have a replica score one batch."""
        now = self._clock()
        for task in tasks:
            self._stats.waited(now - task.since)
        tokens = sum(task.tokens for task in tasks)
        self._stats.sent(tokens)
        self._replicas.change_load(replica, 1, tokens)
        ref = replica.handle.score.remote([task.request for task in tasks])
        self._replicas.expect(replica)
        self._batches[ref] = Batch(replica, tasks, tokens, now)
        self._watch.when_ready(ref, self._arrived)

    def _settle(self, ref: Any, scores: list[RolloutScores | TopKLost]) -> None:
        """Account for a batch that came back; scores that were not delivered before are now."""
        batch = self._batches[ref]
        replica = batch.replica
        asked = [task.rollout_id for task in batch.tasks]
        if [score.rollout_id for score in scores] != asked:
            raise TeacherError(
                f"{replica.name} answered for {[s.rollout_id for s in scores]}; asked were {asked}"
            )
        self._close(ref)
        answered = list(zip(batch.tasks, scores, strict=True))
        scored = [(task, found) for task, found in answered if isinstance(found, RolloutScores)]
        retries = sum(score.retries for _, score in scored)
        self._stats.scored(replica.name, sum(task.tokens for task, _ in scored), retries)
        # In a fixed batch there may be some that another replica holds already.
        unwanted = [
            task.rollout_id
            for task, _ in scored
            if task.dropped or task.holder not in (None, replica)
        ]
        if unwanted:
            replica.handle.forget.remote(unwanted)
        lost: list[str] = []
        for task, found in answered:
            if task.dropped:
                self._let_go(task)
            elif isinstance(found, TopKLost):
                task.lost = True
                lost.append(task.rollout_id)
            else:
                task.holder = task.holder or replica
                if not task.delivered:
                    task.delivered = True
                    self.deliver(found)
        if lost:
            self.lost(lost)

    def _close(self, ref: Any) -> Batch:
        batch = self._batches.pop(ref)
        self._stats.worked(batch.replica.name, batch.sent)
        self._replicas.answered(batch.replica)
        self._replicas.change_load(batch.replica, -1, -batch.tokens)
        if not self._batches:
            self._stats.idle()
        return batch

    def _lose(self, replica: Replica, death: ActorDied) -> None:
        """Ask a dead replica's rollouts elsewhere, and start another in its place."""
        if not self._replicas.bury(replica):
            return
        lost: list[Task] = []
        for ref in [ref for ref, batch in self._batches.items() if batch.replica is replica]:
            lost += self._close(ref).tasks
        lost += [task for task in self._tasks.values() if task.holder is replica]
        for task in lost:
            task.holder, task.since = None, self._clock()
            if task.dropped:
                self._let_go(task)
        again = [task for task in lost if not task.dropped]
        self._queue.put_back(again)
        self._stats.queued(self._queue.tokens)
        self._stats.retried_rollouts += len(again)
        follows = "its rollouts are asked again"
        self._stats.restarts += self._replicas.replace(replica, death, follows)
        self._pump_soon()

    def _await_held(self, rollout_ids: Iterable[str]) -> None:
        """Wait until a replica holds the signal of each of these."""
        tasks = [self._tasks[rollout_id] for rollout_id in rollout_ids]
        if self._waits and any(task.holder is None for task in tasks):
            self.writing(False)  # trainers wait for these
        self.until(
            lambda: all(task.holder is not None for task in tasks),
            "rollouts to be scored again after a teacher's death",
        )

    def _take_held(
        self, shares: Sequence[Mapping[str, np.ndarray]], forget: bool
    ) -> Iterator[tuple[int, Collection[str], Replica, Any]]:
        """Whose rows came, for which share and from where, and the reference to them.

        Every replica is asked for every share before the first answer is waited for. What dies
        meanwhile brings nothing.
        """
        self._await_held(chain(*shares))
        by_replica: dict[tuple[int, Replica], dict[str, np.ndarray]] = {}
        for number, share in enumerate(shares):
            for rollout_id, rows in share.items():
                holder = self._tasks[rollout_id].holder
                assert holder is not None
                by_replica.setdefault((number, holder), {})[rollout_id] = rows
        asked = []
        for (number, replica), keep in by_replica.items():
            asked.append((number, replica, keep, *replica.handle.take.remote(keep, forget)))
            self._replicas.expect(replica)
        for number, replica, keep, signals, receipt_ref in asked:
            # Until the receipt is here, the rows might die with the replica.
            try:
                receipt: SignalReceipt = self._watch.get(receipt_ref, replica.name)
            except ActorDied as death:
                self._lose(replica, death)
                continue
            self._replicas.answered(replica)
            self._stats.handed_out(receipt, kept=forget)
            yield number, keep, replica, signals

    def _forget_taken(self, rollout_id: str, holder: Replica) -> None:
        """Rows that its holder has given away and forgotten concern this pool no more."""
        task = self._tasks[rollout_id]
        if task.holder is holder:
            self._let_go(task)
        else:  # the holder has died since, and it is being asked again
            self.drop([rollout_id])

    def _let_go(self, task: Task) -> None:
        """A rollout is of no concern any more, although its fixed batch may be read again."""
        task.dropped = True
        if self._tasks.get(task.rollout_id) is task:
            del self._tasks[task.rollout_id]
        if all(mate.dropped for mate in task.batch):
            for mate in task.batch:
                mate.batch = []  # nobody asks it again: no circle keeps the student's top-Ks

    def _require_scored(self, rollout_id: str) -> None:
        task = self._tasks.get(rollout_id)
        if task is None or task.dropped or not task.delivered:
            state = "not known" if task is None else "still queued or being scored"
            raise TeacherError(f"rollout {rollout_id!r} has no signal at a teacher: it is {state}")
