"""Which replicas of a teacher can score, which are coming up, and who replaces the dead ones.

Uses no Ray: the watch does.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

from opd_ray.errors import ActorDied, ActorFailure
from opd_ray.pools.watch import ActorWatch


@dataclass(eq=False)
class Replica:
    """One replica and what it has been given."""

    number: int  # in the order of their start
    name: str
    handle: Any
    lifeline: Any  # a reference that is ready only when the process is gone
    batches: int = 0
    outstanding_tokens: int = 0

    @property
    def load(self) -> tuple[int, int, int]:
        """Orders replicas: the one that should be given work first is the smallest."""
        return self.batches, self.outstanding_tokens, self.number


@dataclass(eq=False)
class Replicas:
    """The replicas of one teacher. Their deaths are this object's concern, and end no wait."""

    replicas: InitVar[Sequence[tuple[str, Any]]]  # (name, actor handle) pairs
    watch: ActorWatch  # in which they are watched
    start: Callable[[str], Any]  # creates the actor of that name anew, at its place
    max_restarts: int  # how often each replica may be started again
    no_more: str  # why none is started again after that, for the message
    news: Callable[
        [Any], object
    ]  # called with the reference that tells of a replica: :meth:`behind`

    def __post_init__(self, replicas: Sequence[tuple[str, Any]]) -> None:
        self._restarts: Counter[str] = Counter()
        self._started = 0
        self._living: dict[int, Replica] = {}  # by number
        self._loads: list[tuple[int, int, int]] = []  # of the living, ascending
        self._starting: dict[Any, Replica] = {}  # by the reference that says it has loaded
        self._lifelines: dict[Any, Replica] = {}
        for name, handle in replicas:
            self._admit(self._watched(name, handle))

    def __iter__(self) -> Iterator[Replica]:
        """Those that can score, as far as is known."""
        return iter(self._living.values())

    def behind(self, ref: Any) -> Replica | None:
        """The replica that a reference tells of, which has died or come up; None: old news."""
        return self._starting.get(ref) or self._lifelines.get(ref)

    def least_loaded(self) -> Replica | None:
        """Where the next batch should go: to one with the fewest batches, then tokens."""
        return self._living[self._loads[0][2]] if self._loads else None

    def free(self) -> int:
        """How many have no work."""
        return bisect_left(self._loads, (1,))

    def change_load(self, replica: Replica, batches: int, tokens: int) -> None:
        """Add to what a replica has been given; dead ones need no account."""
        if replica.number not in self._living:
            return
        del self._loads[bisect_left(self._loads, replica.load)]
        replica.batches += batches
        replica.outstanding_tokens += tokens
        insort(self._loads, replica.load)

    def loaded(self, ref: Any) -> None:
        """The replica behind this reference can score from now on."""
        self._admit(self._starting.pop(ref))

    def remove(self, replica: Replica, death: ActorDied) -> bool:
        """Take a dead replica out; False if that was done before."""
        if self._lifelines.pop(replica.lifeline, None) is None:
            return False
        if self._living.pop(replica.number, None):
            del self._loads[bisect_left(self._loads, replica.load)]
        self._starting = {ref: r for ref, r in self._starting.items() if r is not replica}
        self.watch.remove(replica.name)
        _say(f"{replica.name} died, its rollouts are asked again: {death.cause}")
        return True

    def replace(self, replica: Replica, death: ActorDied) -> bool:
        """Start another in a dead replica's place, if it may be started again.

        Raises:
            ActorFailure: it may not, and it was the last one.
        """
        name = replica.name
        if self._restarts[name] < self.max_restarts:
            self._restarts[name] += 1
            handle = self.start(name)
            self.watch.add(name, handle)
            _say(f"{name} is started again")
            loaded = handle.ready.remote()
            self._starting[loaded] = self._watched(name, handle)
            self.watch.when_ready(loaded, self.news)
            return True
        if not self._lifelines:
            raise ActorFailure(
                name, f"{death.cause}; no teacher replica is left, and {self.no_more}"
            ) from death
        return False

    def _watched(self, name: str, handle: Any) -> Replica:
        replica = Replica(self._started, name, handle, self.watch.hand_over(name))
        self._started += 1
        self._lifelines[replica.lifeline] = replica
        self.watch.when_ready(replica.lifeline, self.news)
        return replica

    def _admit(self, replica: Replica) -> None:
        self._living[replica.number] = replica
        insort(self._loads, replica.load)


def _say(text: str) -> None:
    print(f"opd-ray: {text}", file=sys.stderr)
