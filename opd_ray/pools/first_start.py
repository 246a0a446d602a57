"""The run's actors come up for the first time: those that die meanwhile are started again.

A process that hangs is not: nobody can tell it from one whose model loads slowly, and every further
try would take ``cluster.start_timeout_s`` until the user hears that this is too short.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from opd_ray.cluster.placed_actor import Role
from opd_ray.errors import ActorFailure, ActorLost
from opd_ray.pools.members import brief
from opd_ray.pools.watch import ActorWatch


@dataclass
class FirstStart:
    """Waits for all actors to load."""

    watch: ActorWatch
    actors: Mapping[Role, Sequence[tuple[str, Any]]]  # (name, handle) as they are now
    # Of the actor of a name: the key that says how often it may be started again, and how often.
    allowed: Callable[[str], tuple[str, int]]
    # Starts an actor again at its place; with a trainer rank all ranks, which only meet once.
    again: Callable[[str], object]
    # Names of replicas whose answers trainers compute: they load once the ranks are up, and start
    # again with them.
    after_trainers: Collection[str] = ()
    _asked: dict[str, ray.ObjectRef] = field(default_factory=dict)  # by name, to load
    _restarts: Counter[str] = field(default_factory=Counter)  # by key, of the ranks together

    def wait(self) -> dict[str, Any]:
        """Returns once all have loaded: what each has answered, by name.

        Raises:
            ActorFailure: one could not start, or died once more often than it may.
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

    def _ask(self) -> None:
        """Have those load that have not been asked to."""
        for name, handle in self.actors["rollout"]:
            if name not in self._asked:
                self._asked[name] = handle.ready.remote()
        replicas = [name for name, _ in self.actors["teacher"]]
        self._ask_replicas([name for name in replicas if name not in self.after_trainers])
        ranks = self.actors["trainer"]
        if ranks and ranks[0][0] not in self._asked:
            name, first = ranks[0]
            meeting = self.watch.get(first.address.remote(), name, interruptible=True)
            self._asked |= {name: handle.setup.remote(*meeting) for name, handle in ranks}

    def _ask_replicas(self, names: Collection[str]) -> None:
        for name, handle in self.actors["teacher"]:
            if name in names and name not in self._asked:
                self._asked[name] = handle.ready.remote()

    def _answers(self) -> dict[str, Any]:
        """Of all that were asked, by name."""
        pairs = [(ref, name) for name, ref in self._asked.items()]
        answers = self.watch.get_all(pairs, interruptible=True)
        return dict(zip(self._asked, answers, strict=True))

    def _start_again(self, loss: ActorLost) -> None:
        is_rank = any(name == loss.name for name, _ in self.actors["trainer"])
        key, allowed = self.allowed(loss.name)
        counted = key if is_rank else loss.name
        if loss.in_constructor:
            raise loss  # its next process would raise the same
        if not loss.never_ran:
            if self._restarts[counted] >= allowed:
                raise ActorFailure(
                    loss.owner,
                    f"{loss.cause}; it died while it came up, and {key} = {allowed} allows no "
                    "further start",
                ) from loss
            self._restarts[counted] += 1
        print(
            f"opd-ray: {loss.name} died while it came up ({brief(loss.cause)}); starting "
            f"{'all ranks' if is_rank else 'it'} again "
            f"({self._restarts[counted]} of {key} = {allowed})",
            file=sys.stderr,
        )
        for name in [name for name, _ in self.actors["trainer"]] if is_rank else [loss.name]:
            self._asked.pop(name, None)
        self.again(loss.name)
        for name in self.after_trainers if is_rank else ():
            self._asked.pop(name, None)
            self.again(name)
