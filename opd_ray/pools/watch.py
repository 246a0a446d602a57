"""The run's actors by name, and the death of any of them noticed wherever the run waits.

Each actor offers a method ``lifeline`` that never returns. Its reference becomes ready only when
the process is gone, so waiting on it beside the real work finds a dead process at once, even an
idle one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from opd_ray.errors import ActorDied, ActorFailure, PeerFailure, RunError

# How long after a task's error the watch looks for a dead process, which is then the real cause:
# the peers of a dead trainer rank fail with "connection closed", often before Ray tells of it.
_ROOT_CAUSE_SECONDS = 3.0
_SLICE_SECONDS = 0.5


class StallError(RunError):
    """Nothing happened for longer than the run allows."""


class Interrupted(RunError):
    """The user asked the run to stop."""


class ActorWatch:
    """Named actors, their lifelines, and every wait of the coordinator.

    Args:
        stall_timeout_s: seconds without any event after which a wait gives up.
        key: the configuration key that sets it.
    """

    def __init__(self, stall_timeout_s: float, key: str) -> None:
        self.set_stall_timeout(stall_timeout_s, key)
        self._actors: dict[str, Any] = {}
        self._lifelines: dict[ray.ObjectRef, str] = {}
        self._handed_over: set[str] = set()
        self.stop_requested = False

    def set_stall_timeout(self, seconds: float, key: str) -> None:
        """How long a wait may see nothing happen, and which configuration key says so."""
        self._stall_timeout_s, self._stall_timeout_key = seconds, key

    def add(self, name: str, handle: Any) -> None:
        """Add an actor; from now on its death ends any wait."""
        if name in self._actors:
            raise ValueError(f"an actor named {name!r} is watched already")
        self._actors[name] = handle
        self._lifelines[handle.lifeline.remote()] = name

    def hand_over(self, name: str) -> ray.ObjectRef:
        """Leave an actor's death to someone else: it ends no wait any more.

        Whoever asks for a value of that actor then gets an ActorDied.

        Returns:
            its lifeline.
        """
        lifeline = next(ref for ref, owner in self._lifelines.items() if owner == name)
        del self._lifelines[lifeline]
        self._handed_over.add(name)
        return lifeline

    def remove(self, name: str) -> None:
        """End one actor on purpose."""
        handle = self._actors.pop(name)
        self._handed_over.discard(name)
        self._lifelines = {ref: owner for ref, owner in self._lifelines.items() if owner != name}
        ray.kill(handle)

    def shutdown(self) -> None:
        """End every actor."""
        for name in list(self._actors):
            self.remove(name)

    def wait(self, pending: Sequence[Any], what: str, *, interruptible: bool = False) -> Any:
        """The first of ``pending`` (object references or streaming generators) to be ready.

        Raises:
            ActorFailure: a process of the run died.
            StallError: nothing happened for as long as the stall timeout.
            Interrupted: a stop was requested and this wait may be left.
        """
        deadline = time.monotonic() + self._stall_timeout_s
        while True:
            if interruptible and self.stop_requested:
                raise Interrupted(f"stopped while waiting for {what}")
            ready, _ = ray.wait(
                [*pending, *self._lifelines],
                num_returns=1,
                timeout=_SLICE_SECONDS,
                fetch_local=False,
            )
            if ready:
                owner = None if ready[0] in pending else self._lifelines.get(ready[0])
                if owner is None:
                    return ready[0]
                raise self._death(ready[0], owner)
            if time.monotonic() > deadline:
                raise StallError(
                    f"nothing happened for {self._stall_timeout_s:.0f} s while waiting for {what} "
                    f"({self._stall_timeout_key} sets this limit)"
                )

    def get(self, ref: ray.ObjectRef, owner: str) -> Any:
        """The value of a reference; an error names ``owner``, or the process that caused it.

        Raises:
            ActorDied: the process of an actor that was handed over is gone.
            ActorFailure: any other error.
            StallError: see :meth:`wait`.
        """
        self.wait([ref], owner)
        try:
            return ray.get(ref)
        except RayError as error:
            # An actor's method that raised such an error itself is alive: that is a RayTaskError.
            gone = isinstance(error, RayActorError) and not isinstance(error, RayTaskError)
            if gone and owner in self._handed_over:
                raise ActorDied(owner, _short(error)) from error
            if isinstance(error, PeerFailure):  # all are alive, and one of them knows the cause
                raise ActorFailure(owner, _short(error)) from error
            raise self._root_cause(error, owner) from error

    def get_all(self, refs: Iterable[tuple[ray.ObjectRef, str]]) -> list[Any]:
        """The values of (reference, owner) pairs, in order; the first failure ends the wait.

        A PeerFailure does not: the call that caused it fails too, and its error says more.
        """
        pairs = list(refs)
        owners = dict(pairs)
        values: dict[ray.ObjectRef, Any] = {}
        complaint: ActorFailure | None = None
        while len(values) < len(owners):
            pending = [ref for ref in owners if ref not in values]
            ref = self.wait(pending, ", ".join(owners[ref] for ref in pending))
            try:
                values[ref] = self.get(ref, owners[ref])
            except ActorFailure as failure:
                if not isinstance(failure.__cause__, PeerFailure):
                    raise
                complaint, values[ref] = failure, None
        if complaint is not None:
            raise complaint
        return [values[ref] for ref, _ in pairs]

    def _root_cause(self, error: RayError, owner: str) -> ActorFailure:
        """A dead process if there is one, else the error itself."""
        if self._lifelines:
            ready, _ = ray.wait(
                list(self._lifelines), num_returns=1, timeout=_ROOT_CAUSE_SECONDS, fetch_local=False
            )
            if ready:
                return self._death(ready[0], self._lifelines[ready[0]])
        return ActorFailure(owner, _short(error))

    def _death(self, lifeline: ray.ObjectRef, owner: str) -> ActorFailure:
        try:
            ray.get(lifeline)
        except RayError as error:
            return ActorFailure(owner, _short(error))
        return ActorFailure(owner, "its lifeline ended although the process lives")


def _short(error: RayError) -> str:
    """The part of a Ray error that says what happened, without Ray's general advice."""
    if isinstance(error, RayTaskError):
        return str(error).strip()
    if isinstance(error, RayActorError):
        return str(error).split("Some common causes include")[0].strip()
    return f"{type(error).__name__}: {error}"
