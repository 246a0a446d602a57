"""Whose turn it is, where all roles of a run are on the same GPUs (``cluster.placement: turns``).

    rollouts awake, writing ── asleep ── teachers in, scoring ── out ── trainers in, a step ── out
          ^                                                                                      │
          └── their cache awake ── new weights taken in ── memory of their weights awake  <──────┘

Whoever needs a role asks for its turn (:meth:`Turns.to`): whoever has it gives its memory back
first, and who has it already is not disturbed. So evaluations, checkpoints, exact scores and new
trainers find their place without knowing of each other, and nobody is at work beside another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from opd_ray.cluster.placed_actor import Role
from opd_ray.config.choices import PlacementChoice
from opd_ray.config.schema import ClusterSettings
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.trainers import SignalSource, TrainerGroup
from opd_ray.pools.watch import ActorWatch


class Order(Protocol):
    """Who may work when."""

    @property
    def alternate(self) -> bool:
        """Whether one role at a time does."""

    def to(self, role: Role) -> None:
        """A role comes to work."""

    def until(self, done: Callable[[], bool], what: str, *, interruptible: bool = False) -> None:
        """Wait for what rollouts are written, and scored, for; see ActorWatch.wait_until."""

    def handing_over(self, take: SignalSource) -> SignalSource:
        """As ``take``, which brings the trainers what they need; then they come to work."""

    def make_way(self) -> None:
        """All ranks are gone, wherever they were, and new ones are to load: it is their turn."""


def work_order(
    cluster: ClusterSettings,
    rollouts: RolloutPool,
    teachers: TeacherRouter,
    trainers: TrainerGroup,
) -> Order:
    """As ``cluster.placement`` asks for it; with turns, all actors are asleep."""
    if cluster.placement is not PlacementChoice.turns:
        return AllAtOnce(trainers.watch)
    order = Turns(rollouts, teachers, trainers)
    for pool in teachers.pools.values():
        pool.until = order.until
    return order


@dataclass
class AllAtOnce:
    """Everybody has a place of its own, and works whenever there is work."""

    watch: ActorWatch
    alternate: bool = field(default=False, init=False)

    def to(self, role: Role) -> None: ...

    def until(self, done: Callable[[], bool], what: str, *, interruptible: bool = False) -> None:
        self.watch.wait_until(done, what, interruptible=interruptible)

    def handing_over(self, take: SignalSource) -> SignalSource:
        return take

    def make_way(self) -> None: ...


@dataclass
class Turns:
    """One role after another. All actors are asleep when this is made.

    Attributes:
        at_work: the role whose turn it is; None: nobody's, as at the start.
        deliver: brings the engines the trainers' weights, once these have their memory again.
        from_trainers_memory: whether the engines read it while they take them in.
    """

    rollouts: RolloutPool
    teachers: TeacherRouter
    trainers: TrainerGroup
    at_work: Role | None = field(default=None, init=False)
    deliver: Callable[[], None] = field(init=False)
    from_trainers_memory: bool = field(default=False, init=False)
    alternate: bool = field(default=True, init=False)

    def to(self, role: Role) -> None:
        """Let a role work; whoever has the turn gives its memory back first.

        Raises:
            ActorLost, ActorFailure, StallError: see :meth:`ActorWatch.wait_until`. Then it is
                nobody's turn.
        """
        if self.at_work == role:
            return
        self._end_turn(keep_weights=role == "rollout" and self.from_trainers_memory)
        if role == "rollout":
            self._wake_rollouts()
        elif role == "teacher":
            for pool in self.teachers.pools.values():
                pool.wake()
        else:
            self.trainers.wake()
        self.at_work = role

    def until(self, done: Callable[[], bool], what: str, *, interruptible: bool = False) -> None:
        """Rollouts have the turn while any is to be written, then teachers, until ``done``.

        Where one is to be written again, as its data died with an actor, they have it once more.
        """
        while not done():
            writing = self.rollouts.busy
            self.to("rollout" if writing else "teacher")
            self.trainers.watch.wait_until(
                lambda writing=writing: done() or self.rollouts.busy != writing,  # type: ignore[misc]
                what,
                interruptible=interruptible,
            )

    def handing_over(self, take: SignalSource) -> SignalSource:
        def taken(shares: Sequence[Mapping[str, np.ndarray]]) -> Sequence[Sequence[Any]]:
            references = take(shares)
            self.to("trainer")
            return references

        return taken

    def make_way(self) -> None:
        # Also of those that were on their way to be awake when the ranks were lost.
        self.at_work = None
        self.rollouts.sleep()
        for pool in self.teachers.pools.values():
            pool.sleep()
        self.at_work = "trainer"

    def _end_turn(self, *, keep_weights: bool) -> None:
        ended, self.at_work = self.at_work, None
        if ended == "rollout":
            self.rollouts.sleep()
        elif ended == "teacher":
            for pool in self.teachers.pools.values():
                pool.sleep()
        elif ended == "trainer":
            self.trainers.sleep(but_weights=keep_weights)

    def _wake_rollouts(self) -> None:
        """Weights come before the cache: both and the new weights' own copy might not fit."""
        self.rollouts.wake("weights")
        if self.from_trainers_memory:
            self.trainers.wake(weights_alone=True)
        with self.rollouts.updating():
            self.deliver()
        if self.from_trainers_memory:
            self.trainers.sleep()
        self.rollouts.wake("kv_cache")
