"""Which teacher's pool is responsible for a rollout."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from actors.teacher.protocol import TeacherError
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.types import Rollout


@dataclass(frozen=True)
class TeacherRouter:
    """The pools of a run's teachers."""

    pools: Mapping[str, TeacherPool]  # by the teacher's name
    routes: Mapping[str, str]  # from a prompt's source to a pool; empty: the only pool gets all

    def __post_init__(self) -> None:
        if not self.routes and len(self.pools) != 1:
            raise ValueError(f"{len(self.pools)} teachers and no routes between them")

    def pool_for(self, rollout: Rollout, source: str) -> TeacherPool:
        """Where a finished rollout should go.

        Args:
            rollout: new to all pools, or submitted to one whose top-K of it was lost.
            source: of its prompt.

        Raises:
            TeacherError: no route from this source, or another pool has the rollout.
        """
        name = self.routes.get(source) if self.routes else next(iter(self.pools))
        if name is None:
            raise TeacherError(
                f"rollout {rollout.rollout_id!r}: its source {source!r} has no teacher in routes"
            )
        pool = self.pools[name]
        if any(rollout.rollout_id in one for one in self.pools.values() if one is not pool):
            raise TeacherError(f"rollout {rollout.rollout_id!r} was submitted twice")
        return pool

    def __contains__(self, rollout_id: str) -> bool:
        """Whether a pool is responsible for a rollout."""
        return any(rollout_id in pool for pool in self.pools.values())

    def lose(self, rollout_ids: Collection[str]) -> list[str]:
        """The top-Ks of these rollouts are gone; see :meth:`TeacherPool.lose`."""
        return [key for pool in self.pools.values() for key in pool.lose(rollout_ids)]

    def expect(self, rollouts: Sequence[tuple[str, str]]) -> None:
        """Tell every pool which rollouts come next, in their order.

        Args:
            rollouts: their ids and the sources of their prompts; those without a route are refused
                when they come.
        """
        only = None if self.routes else next(iter(self.pools))
        for name, pool in self.pools.items():
            pool.expect([key for key, source in rollouts if self.routes.get(source, only) == name])

    def writing(self, going_on: bool) -> None:
        """Tell every pool whether rollouts are being written."""
        for pool in self.pools.values():
            pool.writing(going_on)

    def take(
        self, shares: Sequence[Mapping[str, np.ndarray]], *, forget: bool = True
    ) -> list[list[Any]]:
        """References to the kept rows of several trainers; see :meth:`TeacherPool.take`.

        Raises:
            TeacherError: a rollout whose signal no teacher holds.
        """
        refs: list[list[Any]] = [[] for _ in shares]
        for pool in self._by_pool([*chain(*shares)]):
            own = [{key: rows for key, rows in share.items() if key in pool} for share in shares]
            for mine, found in zip(refs, pool.take(own, forget=forget), strict=True):
                mine += found
        return refs

    def drop(self, rollout_ids: Collection[str]) -> None:
        """Give rollouts up, wherever they are.

        Raises:
            TeacherError: a rollout that is not here.
        """
        for pool, own in self._by_pool(rollout_ids).items():
            pool.drop(own)

    def abandon(self) -> None:
        """Give up all rollouts, see :meth:`TeacherPool.abandon`."""
        for pool in self.pools.values():
            pool.abandon()

    def skip(self, rollout_id: str, source: str) -> None:
        """A rollout that was expected has nothing to score."""
        name = self.routes.get(source) if self.routes else next(iter(self.pools))
        if name is not None:
            self.pools[name].skip(rollout_id)

    def _by_pool(self, rollout_ids: Collection[str]) -> dict[TeacherPool, list[str]]:
        found: dict[TeacherPool, list[str]] = {}
        for rollout_id in rollout_ids:
            pool = next((pool for pool in self.pools.values() if rollout_id in pool), None)
            if pool is None:
                raise TeacherError(f"rollout {rollout_id!r} is not with the teachers: not known")
            found.setdefault(pool, []).append(rollout_id)
        return found
