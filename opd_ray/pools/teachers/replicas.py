"""Which replicas of a teacher can score, which are coming up, and who replaces the dead ones.

Uses no Ray: a :class:`Supervisor` does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from opd_ray.errors import ActorDied, ActorFailure
from opd_ray.pools.watch import ActorWatch


@dataclass(frozen=True)
class Replacement:
    """A replica that is coming up."""

    handle: Any
    lifeline: Any  # a reference that is ready only when the process is gone
    loaded: Any  # a reference that is ready when the teacher can score


class Supervisor(Protocol):
    """Watches the processes of replicas and starts others in their place."""

    def lifeline(self, name: str) -> Any:
        """A reference that is ready only when the replica's process is gone."""
        ...

    def wait(self, refs: Sequence[Any]) -> Any:
        """The first of ``refs`` to be ready."""
        ...

    def report_dead(self, name: str, cause: str) -> None:
        """Make sure that a replica found dead is gone, and tell of it."""
        ...

    def restart(self, name: str) -> Replacement:
        """Start another replica at the same place under the same name; returns at once."""
        ...


@dataclass(eq=False)
class Replica:
    """One replica and what it has been given."""

    name: str
    handle: Any
    lifeline: Any = None
    batches: int = 0
    outstanding_tokens: int = 0


class Replicas:
    """The replicas of one teacher.

    Args:
        replicas: (name, actor handle) pairs.
        supervisor: None: the death of a replica ends the run.
        max_restarts: how often each replica may be started again.
        no_more: why none is started again after that, for the message.
    """

    def __init__(
        self,
        replicas: Sequence[tuple[str, Any]],
        supervisor: Supervisor | None,
        max_restarts: int,
        no_more: str,
    ) -> None:
        self.living = [
            Replica(name, handle, supervisor.lifeline(name) if supervisor else None)
            for name, handle in replicas
        ]
        self._supervisor = supervisor
        self._max_restarts = max_restarts
        self._no_more = no_more
        self._restarts: Counter[str] = Counter()
        self._starting: dict[Any, Replica] = {}  # by the reference that says it has loaded

    def refs(self) -> list[Any]:
        """References that become ready when a replica dies or has come up."""
        lifelines = [r.lifeline for r in self._all() if r.lifeline is not None]
        return [*self._starting, *lifelines]

    def behind(self, ref: Any) -> Replica:
        """The replica that one of :meth:`refs` tells of."""
        if ref in self._starting:
            return self._starting[ref]
        return next(r for r in self._all() if r.lifeline is not None and r.lifeline == ref)

    def admit(self, ref: Any) -> None:
        """The replica behind this reference has loaded: it can score from now on."""
        self.living.append(self._starting.pop(ref))

    def remove(self, replica: Replica, death: ActorDied) -> bool:
        """Take a dead replica out; False if that was done before.

        Raises:
            ActorDied: nobody supervises the replicas.
        """
        if self._supervisor is None:
            raise death
        if replica not in self._all():
            return False
        self.living = [r for r in self.living if r is not replica]
        self._starting = {ref: r for ref, r in self._starting.items() if r is not replica}
        self._supervisor.report_dead(replica.name, death.cause)
        return True

    def replace(self, replica: Replica, death: ActorDied) -> bool:
        """Start another in a dead replica's place, if it may be started again.

        Raises:
            ActorFailure: it may not, and it was the last one.
        """
        assert self._supervisor is not None
        name = replica.name
        if self._restarts[name] < self._max_restarts:
            self._restarts[name] += 1
            new = self._supervisor.restart(name)
            self._starting[new.loaded] = Replica(name, new.handle, new.lifeline)
            return True
        if not self._all():
            raise ActorFailure(
                name, f"{death.cause}; no teacher replica is left, and {self._no_more}"
            ) from death
        return False

    def wait(self, refs: Sequence[Any]) -> Any:
        """The first of ``refs`` to be ready."""
        assert self._supervisor is not None
        return self._supervisor.wait(refs)

    def _all(self) -> list[Replica]:
        return [*self.living, *self._starting.values()]


class ReplicaSupervisor:
    """A :class:`opd_ray.pools.teachers.replicas.Supervisor` for actors of a watch.

    Args:
        watch: in which the replicas are watched.
        start: creates the actor of that name anew, at its place.
    """

    def __init__(self, watch: ActorWatch, start: Callable[[str], Any]) -> None:
        self._watch = watch
        self._start = start

    def lifeline(self, name: str) -> ray.ObjectRef:
        """From now on the death of this replica is the pool's concern."""
        return self._watch.hand_over(name)

    def wait(self, refs: Sequence[Any]) -> Any:
        """The first of ``refs`` to be ready."""
        return self._watch.wait(refs, "rollouts to be scored again after a teacher's death")

    def report_dead(self, name: str, cause: str) -> None:
        """End what is left of a replica, and say so."""
        self._watch.remove(name)
        print(f"opd-ray: {name} died, its rollouts are asked again: {cause}", file=sys.stderr)

    def restart(self, name: str) -> Replacement:
        """Another process in its place, loading."""
        handle = self._start(name)
        self._watch.add(name, handle)
        print(f"opd-ray: {name} is started again", file=sys.stderr)
        return Replacement(handle, self._watch.hand_over(name), handle.ready.remote())
