"""Teacher replicas watched and replaced: what a teacher pool needs of the run's fleet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.teacher.roster import Replacement
from opd_ray.fleet import Fleet


class TeacherKeeper:
    """A :class:`actors.teacher.roster.Keeper` for actors of a fleet.

    Args:
        fleet: in which the replicas are enlisted.
        start: creates the actor of that name anew, at its place.
    """

    def __init__(self, fleet: Fleet, start: Callable[[str], Any]) -> None:
        self._fleet = fleet
        self._start = start

    def lifeline(self, name: str) -> ray.ObjectRef:
        """From now on the death of this replica is the pool's concern."""
        return self._fleet.entrust(name)

    def wait(self, refs: Sequence[Any]) -> Any:
        """The first of ``refs`` to be ready."""
        return self._fleet.wait(refs, "rollouts to be scored again after a teacher's death")

    def bury(self, name: str, cause: str) -> None:
        """End what is left of a replica, and say so."""
        self._fleet.dismiss(name)
        print(f"opd-ray: {name} died, its rollouts are asked again: {cause}", file=sys.stderr)

    def restart(self, name: str) -> Replacement:
        """Another process in its place, loading."""
        handle = self._start(name)
        self._fleet.enlist(name, handle)
        print(f"opd-ray: {name} is started again", file=sys.stderr)
        return Replacement(handle, self._fleet.entrust(name), handle.ready.remote())
