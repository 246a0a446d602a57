"""The run's actors by name, and the death of any of them noticed wherever the run waits.

Each actor offers a method ``lifeline`` that never returns. Its reference becomes ready only when
the process is gone, which finds a dead process at once, even an idle one.

A run may have a thousand actors, so no event may cost a look at all of them: lifelines report by
themselves, and one look at what is pending brings everything that is ready.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from opd_ray.errors import ActorDied, ActorFailure, PeerFailure, RunError, is_known

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
        self._lifelines: dict[str, ray.ObjectRef] = {}  # by name, of those whose death ends a wait
        self._ended: queue.SimpleQueue[tuple[str, ray.ObjectRef]] = queue.SimpleQueue()
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
        lifeline = self._lifelines[name] = handle.lifeline.remote()
        # Called in a thread of Ray's.
        lifeline.future().add_done_callback(lambda _: self._ended.put((name, lifeline)))

    def hand_over(self, name: str) -> ray.ObjectRef:
        """Leave an actor's death to someone else: it ends no wait any more.

        Whoever asks for a value of that actor then gets an ActorDied.

        Returns:
            its lifeline.
        """
        self._handed_over.add(name)
        return self._lifelines.pop(name)

    def remove(self, name: str) -> None:
        """End one actor on purpose."""
        handle = self._actors.pop(name)
        self._handed_over.discard(name)
        self._lifelines.pop(name, None)
        ray.kill(handle)

    def shutdown(self) -> None:
        """End every actor."""
        for name in list(self._actors):
            self.remove(name)

    def wait(
        self,
        pending: Sequence[Any],
        what: str,
        *,
        interruptible: bool = False,
        all_of: bool = False,
    ) -> list[Any]:
        """Those of ``pending`` (object references, streaming generators) that are ready, in order.

        At least one. A look costs as much as there are pending, so none is spent on a single event
        where more have happened.

        Args:
            pending: each once.
            what: for messages.
            interruptible: whether a stop that was requested ends this wait.
            all_of: rather all of them, if the others follow within half a second.

        Raises:
            ActorFailure: a process of the run died.
            StallError: nothing happened for as long as the stall timeout.
            Interrupted: a stop was requested and this wait may be left.
        """
        look = partial(ray.wait, list(pending), fetch_local=False)
        deadline = time.monotonic() + self._stall_timeout_s
        while True:
            if interruptible and self.stop_requested:
                raise Interrupted(f"stopped while waiting for {what}")
            if death := self._next_death(timeout_s=0.0):
                raise death
            wanted = len(pending) if all_of else 1
            ready, waiting = look(num_returns=wanted, timeout=_SLICE_SECONDS)
            if ready and waiting:
                ready = look(num_returns=len(pending), timeout=0)[0] or ready
            if ready:
                return ready
            if time.monotonic() > deadline:
                raise StallError(
                    f"nothing happened for {self._stall_timeout_s:.0f} s while waiting for {what} "
                    f"({self._stall_timeout_key} sets this limit)"
                )

    def get(self, ref: ray.ObjectRef, owner: str, *, interruptible: bool = False) -> Any:
        """The value of a reference; an error names ``owner``, or the process that caused it.

        Raises:
            ActorDied: the process of an actor that was handed over is gone.
            ActorFailure: any other error.
            StallError, Interrupted: see :meth:`wait`.
        """
        return self.get_all([(ref, owner)], interruptible=interruptible)[0]

    def get_all(
        self, refs: Iterable[tuple[ray.ObjectRef, str]], *, interruptible: bool = False
    ) -> list[Any]:
        """The values of (reference, owner) pairs, in order; the first failure ends the wait.

        A PeerFailure does not: the call that caused it fails too, and its error says more.
        """
        pairs = list(refs)
        pending = dict(pairs)
        values: dict[ray.ObjectRef, Any] = {}
        complaint: ActorFailure | None = None
        while pending:
            what = ", ".join(pending.values())
            for ref in self.wait(list(pending), what, interruptible=interruptible, all_of=True):
                try:
                    values[ref] = self._value(ref, pending.pop(ref))
                except ActorFailure as failure:
                    if not isinstance(failure.__cause__, PeerFailure):
                        raise
                    complaint, values[ref] = failure, None
        if complaint is not None:
            raise complaint
        return [values[ref] for ref, _ in pairs]

    def _value(self, ref: ray.ObjectRef, owner: str) -> Any:
        """The value of a reference that is ready."""
        try:
            return ray.get(ref)
        except RayError as error:
            # An actor's method that raised such an error itself is alive: that is a RayTaskError.
            gone = isinstance(error, RayActorError) and not isinstance(error, RayTaskError)
            if gone and owner in self._handed_over:
                raise ActorDied(owner, _short(error)) from error
            if isinstance(error, PeerFailure):  # all are alive, and one of them knows the cause
                raise ActorFailure(owner, _short(error)) from error
            # A dead process if there is one, else the error itself.
            death = self._next_death(_ROOT_CAUSE_SECONDS if self._lifelines else 0.0)
            raise (death or ActorFailure(owner, _short(error))) from error

    def _next_death(self, timeout_s: float) -> ActorFailure | None:
        """The death of an actor that ends any wait, if one died or does so within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        with suppress(queue.Empty):
            while True:
                name, lifeline = self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
                if self._lifelines.get(name) == lifeline:  # else handed over, or ended on purpose
                    self._ended.put((name, lifeline))  # a later wait must not miss it
                    return _death(lifeline, name)
        return None


def _death(lifeline: ray.ObjectRef, owner: str) -> ActorFailure:
    try:
        ray.get(lifeline)
    except RayError as error:
        return ActorFailure(owner, _short(error))
    return ActorFailure(owner, "its lifeline ended although the process lives")


def _short(error: RayError) -> str:
    """The part of a Ray error that says what happened, without Ray's general advice."""
    if isinstance(error, RayTaskError):
        # What an actor raised for the user to read needs none of the actor's frames.
        return str(error.cause if is_known(error) else error).strip()
    if isinstance(error, RayActorError):
        return str(error).split("Some common causes include")[0].strip()
    return f"{type(error).__name__}: {error}"
