"""Actors of one kind at their places: whose death or silence is noticed, and who follows them.

Uses no Ray: the watch does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from opd_ray.errors import ActorDied, ActorFailure
from opd_ray.pools.watch import ActorWatch

# A silent actor is looked at so often within its limit, and ended at the last look of as many that
# found nothing new. One look is not enough: a coordinator that was stopped for a while finds its
# limits past before Ray has brought it what was answered meanwhile.
_LOOKS = 2


class ActorHung(ActorDied):
    """An actor owes an answer for too long, and is ended."""


@dataclass(frozen=True)
class RestartPolicy:
    """What becomes of actors that die or hang."""

    what: str  # they are, for messages
    key: str  # their section of the configuration
    start: Callable[[str], Any]  # creates the actor of that name anew, at its place
    max_restarts: int  # how often each of them may be started again
    no_more: str  # why none is started again after that, for messages
    remedy: str  # for when none is left
    start_timeout_s: float  # how long one may take to come up again
    answer_timeout_s: float | None  # how long one may owe an answer; None: for ever


@dataclass(eq=False)
class Member:
    """One actor."""

    number: int  # in the order of their start
    name: str
    handle: Any
    up: bool  # whether it has loaded
    dead: bool = False
    owes: int = 0  # answers that it has been asked for
    heard: bool = False  # whether anything has come of it since the last look
    silent: int = 0  # looks that found nothing new
    looked_after: bool = False  # whether a look is to come


M = TypeVar("M", bound=Member)


class Members(Generic[M]):
    """Those of one kind. Their deaths are this object's concern, and end no wait.

    Args:
        make: a member of a number, a name, a handle, and whether it is up.
        watch: in which they are watched.
        policy: of this kind.
        lost: called when one has died or hangs, as often as that is noticed: :meth:`bury`.
        came_up: called when one that was started again has loaded.
    """

    def __init__(
        self,
        make: Callable[[int, str, Any, bool], M],
        watch: ActorWatch,
        policy: RestartPolicy,
        lost: Callable[[M, ActorDied], object],
        came_up: Callable[[M], object],
    ) -> None:
        self.watch = watch
        self._make, self._policy = make, policy
        self._lost, self._came_up = lost, came_up
        self._restarts: Counter[str] = Counter()
        self._asleep = False
        self._source_gone = False  # whether what they load from has ended
        self._to_start: list[str] = []  # names of those that died in either case
        self._started = 0
        self._alive: dict[int, M] = {}  # by number, those that are coming up too

    def all(self) -> Iterator[M]:
        """Those that live as far as is known, up or coming up."""
        return iter(self._alive.values())

    def join(self, name: str, handle: Any, *, up: bool = True) -> M:
        """Look after an actor of the watch from now on."""
        member = self._make(self._started, name, handle, up)
        self._started += 1
        self._alive[member.number] = member
        self.watch.when_ready(self.watch.hand_over(name), partial(self._ended, member))
        return member

    @property
    def asleep(self) -> bool:
        """Whether they have given their memory back."""
        return self._asleep

    def sleep(self) -> None:
        """Have all give their memory back, those that are coming up too once they are there.

        Raises:
            As :meth:`ask`.
        """
        self._asleep = True  # nobody is started in somebody's place from now on
        self.watch.wait_until(lambda: all(one.up for one in self.all()), self._policy.what)
        self.ask([*self.all()], lambda handle: handle.sleep.remote())

    def lie_asleep(self) -> None:
        """They are asleep already."""
        self._asleep = True

    def wake(self, *parts: str) -> None:
        """Have all take memory again, all of it or a part.

        Raises:
            As :meth:`ask`.
        """
        self.ask([*self.all()], lambda handle: handle.wake.remote(*parts))

    def woken(self) -> None:
        """All are at work again; now others come in the place of those that died meanwhile."""
        self._asleep = False
        self._start_waiting()

    def lose_source(self) -> None:
        """What they load from has ended: nobody is started until :meth:`begin_anew`."""
        self._source_gone = True

    def begin_anew(self) -> None:
        """What they load from has begun anew: start those that are coming up once more.

        Others come in the place of those that died meanwhile.
        """
        self._source_gone = False
        for member in [one for one in self._alive.values() if not one.up]:
            self.bury(member)
            self._start(member.name)
        self._start_waiting()

    def expect(self, member: M) -> None:
        """It has been asked for something, and owes an answer."""
        member.owes += 1
        member.heard = True
        if not member.looked_after:
            self._look_later(member)

    def answered(self, member: M) -> None:
        """It has given one that it owed."""
        member.owes -= 1
        member.heard = True

    def ask(self, members: Iterable[M], question: Callable[[Any], Any]) -> list[tuple[M, Any]]:
        """The answers of those of these that live until they have given theirs.

        Args:
            members: who is asked, all at once.
            question: calls a method of a handle; returns the reference to its answer.

        Raises:
            ActorFailure: one raised, or the last one died and may not be started again.
        """
        asked = []
        for member in members:
            asked.append((member, question(member.handle)))
            self.expect(member)
        answers = []
        for member, ref in asked:
            try:
                answers.append((member, self.watch.get(ref, member.name)))
            except ActorDied as death:
                self._lost(member, death)
                continue
            self.answered(member)
        return answers

    def peak_memory(self) -> dict[str, int]:
        """Of those that are up, by name, bytes."""
        up = [member for member in self.all() if member.up]
        found = self.ask(up, lambda handle: handle.peak_memory.remote())
        return {member.name: peak for member, peak in found}

    def bury(self, member: M) -> bool:
        """Take out one that died or hangs, and end its process; False if that was done before."""
        if member.dead:
            return False
        member.dead = True
        del self._alive[member.number]
        self.watch.remove(member.name)
        return True

    def replace(self, member: M, death: ActorDied, what_follows: str) -> bool:
        """Start another in its place, if it may be started again; says what happened.

        Returns:
            whether this counts as a restart: not of one that never ran.

        Raises:
            ActorFailure: it may not, and it was the last one.
        """
        name, policy = member.name, self._policy
        if death.never_ran:
            _say(f"{name} was given to a node that is dead; starting it again elsewhere")
            self._start_when_possible(name)
            return False
        verb = "hangs" if isinstance(death, ActorHung) else "died"
        told = f"{name} {verb} ({brief(death.cause)}); {what_follows}"
        if self._restarts[name] < policy.max_restarts:
            self._restarts[name] += 1
            count, key = self._restarts[name], f"{policy.key}.max_restarts"
            _say(f"{told}; starting it again ({count} of {key} = {policy.max_restarts})")
            self._start_when_possible(name)
            return True
        if not self._alive:
            raise ActorFailure(
                name,
                f"{death.cause}; no {policy.what} is left, and {policy.no_more}; {policy.remedy}",
            ) from death
        _say(f"{told}; it is not started again: {policy.no_more}")
        return False

    def _start_when_possible(self, name: str) -> None:
        self._to_start.append(name)
        self._start_waiting()

    def _start_waiting(self) -> None:
        if self._asleep or self._source_gone:
            return
        waiting, self._to_start = self._to_start, []
        for name in waiting:
            self._start(name)

    def _start(self, name: str) -> None:
        handle = self._policy.start(name)
        self.watch.add(name, handle)
        member = self.join(name, handle, up=False)
        self.watch.when_ready(handle.ready.remote(), partial(self._loaded, member))
        self.watch.later(self._policy.start_timeout_s, partial(self._too_late, member))

    def _ended(self, member: M, lifeline: Any) -> None:
        if self._has_answered(member, lifeline):
            cause = "its lifeline ended although the process lives"
            self._lost(member, ActorDied(member.name, cause))

    def _loaded(self, member: M, ref: Any) -> None:
        if self._has_answered(member, ref):
            member.up = True
            self._came_up(member)

    def _has_answered(self, member: M, ref: Any) -> bool:
        """Whether one that lives has given this answer; a death that brings none is dealt with."""
        if member.dead:
            return False
        try:
            self.watch.get(ref, member.name)
        except ActorDied as death:
            self._lost(member, death)
            return False
        return True

    def _too_late(self, member: M) -> None:
        if not member.dead and not member.up:
            seconds = self._policy.start_timeout_s
            cause = f"it did not come up within cluster.start_timeout_s = {seconds:.0f} s"
            self._lost(member, ActorHung(member.name, cause))

    def _look_later(self, member: M) -> None:
        if self._policy.answer_timeout_s is not None:
            member.looked_after = True
            self.watch.later(self._policy.answer_timeout_s / _LOOKS, partial(self._look, member))

    def _look(self, member: M) -> None:
        """Has anything come of it since the last look?"""
        member.looked_after = False
        if member.dead or not member.owes:
            return
        member.silent = 0 if member.heard else member.silent + 1
        member.heard = False
        if member.silent < _LOOKS:
            self._look_later(member)
            return
        limit = f"{self._policy.key}.answer_timeout_s = {self._policy.answer_timeout_s:g} s"
        cause = f"it has answered nothing for longer than {limit}"
        self._lost(member, ActorHung(member.name, cause))


def brief(cause: str) -> str:
    """What Ray says of how a process ended, in a line."""
    _, found, detail = cause.partition("Worker exit detail: ")
    return (detail.split(". ")[0] if found else cause.strip().split("\n")[0]).rstrip(".")


def _say(text: str) -> None:
    print(f"opd-ray: {text}", file=sys.stderr)
