"""Which replicas of a teacher can score, and which of them should be given work first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from opd_ray.errors import ActorDied
from opd_ray.pools.members import Member, Members, RestartPolicy
from opd_ray.pools.watch import ActorWatch


@dataclass(eq=False)
class Replica(Member):
    """One replica and what it has been given."""

    batches: int = 0
    outstanding_tokens: int = 0

    @property
    def load(self) -> tuple[int, int, int]:
        """Orders replicas: the one that should be given work first is the smallest."""
        return self.batches, self.outstanding_tokens, self.number


class Replicas(Members[Replica]):
    """The replicas of one teacher.

    Args:
        replicas: (name, actor handle) pairs.
        watch: in which they are watched.
        policy: of those that die.
        lost: see :class:`opd_ray.pools.members.Members`.
        more: called when there is another one to score.
    """

    def __init__(
        self,
        replicas: Sequence[tuple[str, Any]],
        watch: ActorWatch,
        policy: RestartPolicy,
        lost: Callable[[Replica, ActorDied], object],
        more: Callable[[], object],
    ) -> None:
        super().__init__(Replica, watch, policy, lost, self._admit)
        self._more = more
        self._living: dict[int, Replica] = {}  # by number
        self._loads: list[tuple[int, int, int]] = []  # of the living, ascending
        for name, handle in replicas:
            self._enter(self.join(name, handle))

    def __iter__(self) -> Iterator[Replica]:
        """Those that can score, as far as is known."""
        return iter(self._living.values())

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

    def bury(self, member: Replica) -> bool:
        """Take out one that died or hangs, and end its process; False if that was done before."""
        if self._living.pop(member.number, None):
            del self._loads[bisect_left(self._loads, member.load)]
        return super().bury(member)

    def _admit(self, replica: Replica) -> None:
        self._enter(replica)
        self._more()

    def _enter(self, replica: Replica) -> None:
        self._living[replica.number] = replica
        insort(self._loads, replica.load)
