"""The run's actors come up for the first time: those that die or hang are started again.

Nobody can tell a process that hangs from one whose model loads slowly: whoever is not up in time is
ended, and the user hears of the limit each time.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from opd_ray.cluster.placed_actor import Role
from opd_ray.errors import ActorFailure, ActorLost, Unanswered
from opd_ray.pools.members import brief
from opd_ray.pools.watch import ActorWatch, AnswerLimit


class _TooLate(ActorLost):
    """An actor is not up in time."""


@dataclass
class FirstStart:
    """Waits for all actors to load."""

    watch: ActorWatch
    actors: Mapping[Role, Sequence[tuple[str, Any]]]  # (name, handle) as they are now
    # Of the actor of a name: the key that says how often it may be started again, and how often.
    allowed: Callable[[str], tuple[str, int]]
    # Starts an actor again at its place; with a trainer rank all ranks, which only meet once.
    again: Callable[[str], object]
    limit: AnswerLimit  # how long each process may take to come up
    # Names of replicas whose answers trainers compute: they load once the ranks are up, and start
    # again with them.
    after_trainers: Collection[str] = ()
    clock: Callable[[], float] = time.monotonic
    _asked: dict[str, ray.ObjectRef] = field(default_factory=dict)  # by name, to load
    # When those have been asked that are not up as far as is known, by name.
    _since: dict[str, float] = field(default_factory=dict)
    _restarts: Counter[str] = field(default_factory=Counter)  # by key, of the ranks together

    def wait(self) -> dict[str, Any]:
        """Returns once all have loaded: what each has answered, by name.

        Raises:
            ActorFailure: one could not start, or died or hung once more often than it may.
            StallError, Interrupted: see :meth:`ActorWatch.wait_until`.
        """
        while True:
            try:
                self._ask()
                answers = self._answers()
                if self.after_trainers:
                    self._ask_replicas(self.after_trainers)
                    answers = self._answers()
                return answers
            except ActorLost as loss:
                self._start_again(loss)
            except Unanswered as late:
                for one in self._too_late(late):
                    self._start_again(one)

    def _ask(self) -> None:
        """Have those load that have not been asked to."""
        for name, handle in self.actors["rollout"]:
            if name not in self._asked:
                self._note(name, handle.ready.remote())
        replicas = [name for name, _ in self.actors["teacher"]]
        self._ask_replicas([name for name in replicas if name not in self.after_trainers])
        ranks = self.actors["trainer"]
        if ranks and ranks[0][0] not in self._asked:
            name, first = ranks[0]
            self._since[name] = self.clock()
            place = first.address.remote()
            meeting = self.watch.get(place, name, interruptible=True, limit=self.limit)
            for rank, handle in ranks:
                self._note(rank, handle.setup.remote(*meeting))

    def _ask_replicas(self, names: Collection[str]) -> None:
        for name, handle in self.actors["teacher"]:
            if name in names and name not in self._asked:
                self._note(name, handle.ready.remote())

    def _note(self, name: str, answer: ray.ObjectRef) -> None:
        self._asked[name], self._since[name] = answer, self.clock()

    def _answers(self) -> dict[str, Any]:
        """Of all that were asked, by name.

        Raises:
            Unanswered: one has taken too long, or had when last was heard of it.
        """
        pairs = [(ref, name) for name, ref in self._asked.items()]
        first = min(self._since.values(), default=self.clock())
        left = AnswerLimit(first + self.limit.seconds - self.clock(), self.limit.key)
        try:
            answers = self.watch.get_all(pairs, interruptible=True, limit=left)
        except Unanswered as late:
            self._since = {name: self._since[name] for name in late.owners}
            raise
        self._since.clear()
        return dict(zip(self._asked, answers, strict=True))

    def _too_late(self, late: Unanswered) -> list[_TooLate]:
        """Of whom is to be started again; of all ranks, which wait for each other, the first."""
        now, limit = self.clock(), self.limit
        names = [name for name in late.owners if now - self._since[name] >= limit.seconds]
        ranks = [name for name, _ in self.actors["trainer"]]
        if any(name in ranks or name in self.after_trainers for name in names):
            # A replica before them computes nothing that could take long.
            names = [ranks[0], *(n for n in names if n not in (*ranks, *self.after_trainers))]
        cause = (
            f"it was not up within {limit.key} = {limit.seconds:g} s; raise that if models take "
            "longer to load"
        )
        return [_TooLate(name, name, cause) for name in names]

    def _start_again(self, loss: ActorLost) -> None:
        is_rank = any(name == loss.name for name, _ in self.actors["trainer"])
        key, allowed = self.allowed(loss.name)
        counted = key if is_rank else loss.name
        if loss.in_constructor:
            raise loss  # its next process would raise the same
        late = isinstance(loss, _TooLate)
        if not loss.never_ran:
            if self._restarts[counted] >= allowed:
                died = "" if late else "it died while it came up, and "
                raise ActorFailure(
                    loss.owner, f"{loss.cause}; {died}{key} = {allowed} allows no further start"
                ) from loss
            self._restarts[counted] += 1
        print(
            f"opd-ray: {loss.name} {'hangs' if late else 'died'} while it came up "
            f"({brief(loss.cause)}); starting {'all ranks' if is_rank else 'it'} again "
            f"({self._restarts[counted]} of {key} = {allowed})",
            file=sys.stderr,
        )
        gone = [name for name, _ in self.actors["trainer"]] if is_rank else [loss.name]
        self._forget(gone)
        self.again(loss.name)
        for name in self.after_trainers if is_rank else ():
            self._forget([name])
            self.again(name)

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._asked.pop(name, None)
            self._since.pop(name, None)
