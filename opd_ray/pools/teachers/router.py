"""The teachers of a run as one: every rollout goes to the pool of the teacher its source names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from actors.teacher.protocol import TeacherError
from opd_ray.pools.teachers.account import PoolStats
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.types import Rollout, RolloutScores


class TeacherRouter:
    """Several :class:`opd_ray.pools.teachers.pool.TeacherPool` behind the interface of one.

    Args:
        pools: by the teacher's name.
        routes: from a prompt's source to a name in ``pools``; empty: the only pool gets all.
    """

    def __init__(self, pools: Mapping[str, TeacherPool], routes: Mapping[str, str]) -> None:
        if not routes and len(pools) != 1:
            raise ValueError(f"{len(pools)} teachers and no routes between them")
        self._pools = dict(pools)
        self._routes = dict(routes)
        self._only = None if routes else next(iter(pools))
        self._teacher_of: dict[str, str] = {}  # by rollout id, while a pool has it

    def submit(
        self, rollout: Rollout, source: str, teacher_prompt_ids: np.ndarray | None = None
    ) -> None:
        """Queue a finished rollout with its teacher.

        Args:
            rollout: as for :meth:`TeacherPool.submit`.
            source: of its prompt.
            teacher_prompt_ids: [P] int32, where the teacher's prompt differs from the student's.

        Raises:
            TeacherError: no route from this source; and see :meth:`TeacherPool.submit`.
        """
        name = self._only or self._routes.get(source)
        if name is None:
            raise TeacherError(
                f"rollout {rollout.rollout_id!r}: its source {source!r} has no teacher in routes"
            )
        if self._teacher_of.get(rollout.rollout_id, name) != name:
            raise TeacherError(f"rollout {rollout.rollout_id!r} was submitted twice")
        self._pools[name].submit(rollout, teacher_prompt_ids)
        self._teacher_of[rollout.rollout_id] = name

    def pump(self) -> None:
        """Send out as much of every queue as the replicas should have now."""
        for pool in self._pools.values():
            pool.pump()

    def pending_refs(self) -> list[Any]:
        """References of the batches that are out; give a ready one to :meth:`collect`."""
        return [ref for pool in self._pools.values() for ref in pool.pending_refs()]

    def owner(self, ref: Any) -> str:
        """The name of the replica behind a pending reference."""
        return self._pool_of_ref(ref).owner(ref)

    def collect(self, ref: Any) -> list[RolloutScores]:
        """The scores of a finished batch, rollouts dropped meanwhile left out."""
        return self._pool_of_ref(ref).collect(ref)

    def take(self, keep: Mapping[str, np.ndarray], *, forget: bool = True) -> list[Any]:
        """References to the kept rows ([n] int32 by rollout id); see :meth:`TeacherPool.take`.

        Raises:
            TeacherError: a rollout whose signal no teacher holds.
        """
        refs = []
        for name, ids in self._by_teacher(keep).items():
            refs += self._pools[name].take({key: keep[key] for key in ids}, forget=forget)
        if forget:
            self._forget(keep)
        return refs

    def drop(self, rollout_ids: Iterable[str]) -> None:
        """Give rollouts up, wherever they are.

        Raises:
            TeacherError: a rollout that is not here.
        """
        ids = list(rollout_ids)
        for name, own in self._by_teacher(ids).items():
            self._pools[name].drop(own)
        self._forget(ids)

    def open_account(self) -> None:
        """Let :meth:`stats` count from now on."""
        for pool in self._pools.values():
            pool.open_account()

    def stats(self) -> dict[str, PoolStats]:
        """Every teacher's account so far, by its name."""
        return {name: pool.stats() for name, pool in self._pools.items()}

    def _by_teacher(self, rollout_ids: Iterable[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for rollout_id in rollout_ids:
            name = self._teacher_of.get(rollout_id)
            if name is None:
                raise TeacherError(f"rollout {rollout_id!r} is not with the teachers: not known")
            found.setdefault(name, []).append(rollout_id)
        return found

    def _forget(self, rollout_ids: Iterable[str]) -> None:
        for rollout_id in rollout_ids:
            del self._teacher_of[rollout_id]

    def _pool_of_ref(self, ref: Any) -> TeacherPool:
        for pool in self._pools.values():
            if ref in pool.pending_refs():
                return pool
        raise TeacherError(f"no teacher has sent out {ref}")
