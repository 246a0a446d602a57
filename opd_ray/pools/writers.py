"""The rollout actors one by one: what each has been given, and whether it can write."""

from __future__ import annotations

from dataclasses import dataclass, field

from opd_ray.pools.members import Member
from opd_ray.types import RolloutRequest


@dataclass(eq=False)
class Writer(Member):
    """One rollout actor; another that is started in its place is another writer."""

    current: bool = True  # whether it has the weights that the others write with
    catching_up: bool = False  # these are asked for
    loading: bool = False  # and have been sent to it
    streaming: bool = False  # a stream of its rollouts is open
    closed: bool = False  # it has heard that no more requests come in this stream
    unfinished: dict[str, RolloutRequest] = field(default_factory=dict)  # by rollout id
    since: float = 0.0  # when it was given the first of them, seconds
    # The rollouts of the batch that it wrote: it holds their top-Ks, which end with it.
    written: list[str] = field(default_factory=list)

    @property
    def can_take(self) -> bool:
        """Whether it can be given requests now."""
        return self.up and self.current and not self.closed
