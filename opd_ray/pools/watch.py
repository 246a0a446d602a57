"""The run's actors by name, and the one place where the run waits: an event loop.

Each actor offers a method ``lifeline`` that never returns. Its reference becomes ready only when
the process is gone, which finds a dead process at once, even an idle one.

A run may have a thousand actors, so no event may cost a look at all of them: whoever asks an actor
for something says once what is to be done with the answer (:meth:`ActorWatch.when_ready`,
:meth:`ActorWatch.read`). Ray tells of each answer by itself, in threads of its own, and it is dealt
with in the coordinator's thread, inside whatever wait that thread is in.
"""

from __future__ import annotations

import heapq
import queue
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import ray
from ray.exceptions import (
    ObjectLostError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
)

from opd_ray.errors import (
    ActorDied,
    ActorFailure,
    ActorLost,
    PeerFailure,
    RunError,
    Unanswered,
)
from opd_ray.pools.ray_errors import end_of, never_ran, told
from opd_ray.pools.streams import StreamReader

# How long after a task's error the watch looks for a dead process, which is then the real cause:
# the peers of a dead trainer rank fail with "connection closed", often before Ray tells of it.
_ROOT_CAUSE_SECONDS = 3.0
# The same where what an actor was to read is lost: whoever had it has died, perhaps with its node,
# of which Ray tells much later.
_LOST_OBJECT_SECONDS = 60.0
# How often a wait looks whether a stop was requested, or nothing has happened for too long.
_SLICE_SECONDS = 0.5


class StallError(RunError):
    """Nothing happened for longer than the run allows."""


class Interrupted(RunError):
    """The user asked the run to stop."""


@dataclass(frozen=True)
class AnswerLimit:
    """How long actors may take to answer."""

    seconds: float
    key: str  # of the configuration, that sets it


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
        self._events: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # The answers to the event that is being dealt with: Ray need not bring them again.
        self._answers: dict[ray.ObjectRef, Future[Any]] = {}
        self._reader = StreamReader()
        # (when, number, what): calls to come, the next one first.
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._timer_numbers = count()
        self.stop_requested = False
        # Whether a KeyboardInterrupt that finds the watch waiting asks for a stop; a second one, or
        # one that finds it at work, is raised as it is.
        self.interrupt_stops = False
        # Comes now and then during every wait, whatever happens in it; must take next to no time.
        self.pulse: Callable[[], object] = _nothing

    def set_stall_timeout(self, seconds: float, key: str) -> None:
        """How long a wait may see nothing happen, and which configuration key says so."""
        self._stall_timeout_s, self._stall_timeout_key = seconds, key

    def add(self, name: str, handle: Any) -> None:
        """Add an actor; from now on its death ends any wait."""
        if name in self._actors:
            raise ValueError(f"an actor named {name!r} is watched already")
        self._actors[name] = handle
        # Only now: whoever waits for an actor of that name that was taken out hears of its death.
        self._handed_over.discard(name)
        lifeline = self._lifelines[name] = handle.lifeline.remote()

        def ended(_: object) -> None:  # in a thread of Ray's
            self._ended.put((name, lifeline))
            self._events.put(_nothing)  # wakes the wait that is under way

        lifeline.future().add_done_callback(ended)

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
        self._lifelines.pop(name, None)
        try:
            ray.kill(handle)
        except RaySystemError as error:
            # Ray raises it for one that never ran, as its node went meanwhile: there is no process.
            if "creation cancelled" not in str(error):
                raise

    def shutdown(self) -> None:
        """End every actor."""
        for name in list(self._actors):
            self.remove(name)
        self._reader.close()

    def when_ready(self, ref: ray.ObjectRef, call: Callable[[ray.ObjectRef], object]) -> None:
        """Have ``call(ref)`` come once there is a value, or an error, inside some wait.

        It must not wait for anything itself; :meth:`get` of ``ref`` does not.
        """

        def answered(future: Future[Any]) -> None:  # in a thread of Ray's
            self._events.put(partial(self._deal_with, ref, future, call))

        ref.future().add_done_callback(answered)

    def read(
        self,
        stream: ray.ObjectRefGenerator,
        call: Callable[[ray.ObjectRef], object],
        ended: Callable[[], object],
    ) -> None:
        """Have ``call`` come for every item of a stream in turn, then ``ended``.

        Nobody else may read the stream. What it raised is its last item.
        """
        self._reader.read(
            stream,
            lambda ref, future: self._events.put(partial(self._deal_with, ref, future, call)),
            lambda: self._events.put(ended),
        )

    def soon(self, call: Callable[[], object]) -> None:
        """Have ``call()`` come inside some wait, after all that has happened before."""
        self._events.put(call)

    def fail(self, error: Exception) -> None:
        """Have the wait that is under way, or the next one, raise ``error``; from any thread."""

        def give_up() -> None:
            raise error

        self._events.put(give_up)

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Have ``call()`` come inside some wait after so many seconds, at the earliest.

        What has happened before it is due is dealt with first. It counts as no event: a wait in
        which nothing else happens is a stall.
        """
        due = time.monotonic() + seconds
        heapq.heappush(self._timers, (due, next(self._timer_numbers), call))

    def wait_until(
        self,
        done: Callable[[], bool],
        what: str,
        *,
        interruptible: bool = False,
        late: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Deal with events, one after another, until ``done()``.

        Args:
            done: looked at before every event.
            what: that is waited for, for messages.
            interruptible: whether a stop that was requested ends this wait.
            late: is told every now and then, when nothing happens, how long this wait has taken; it
                may raise something to end it.

        Raises:
            ActorLost: a process of the run died.
            ActorFailure: or what else dealing with an event raises.
            StallError: nothing happened for as long as the stall timeout.
            Interrupted: a stop was requested and this wait may be left.
        """
        begin = time.monotonic()
        deadline = begin + self._stall_timeout_s
        pulsed = begin
        while True:
            if time.monotonic() - pulsed >= _SLICE_SECONDS:
                pulsed = time.monotonic()
                self.pulse()
            if interruptible:
                self.heed_stop(what)
            if death := self._next_death(timeout_s=0.0):
                raise death
            if done():
                return
            if self._timers and self._timers[0][0] <= time.monotonic():
                self._events.put(_Timer(heapq.heappop(self._timers)[2]))
            try:
                event = self._events.get(timeout=_SLICE_SECONDS)
            except queue.Empty:
                # Only here: who was asleep itself for long first hears what has been answered.
                late(time.monotonic() - begin)
                if time.monotonic() > deadline:
                    raise self._stalled(what) from None
                continue
            except KeyboardInterrupt:
                if not self.interrupt_stops or self.stop_requested:
                    raise
                self.stop_requested = True
                continue
            event()
            if not isinstance(event, _Timer):
                deadline = time.monotonic() + self._stall_timeout_s
            elif time.monotonic() > deadline:
                raise self._stalled(what)

    def _stalled(self, what: str) -> StallError:
        return StallError(
            f"nothing happened for {self._stall_timeout_s:.0f} s while waiting for {what} "
            f"({self._stall_timeout_key} sets this limit)"
        )

    def heed_stop(self, what: str) -> None:
        """Go on, unless a stop was requested; ``what`` comes next, for the message.

        Raises:
            Interrupted: one was.
        """
        if self.stop_requested:
            raise Interrupted(f"stopped while waiting for {what}")

    def get(
        self,
        ref: ray.ObjectRef,
        owner: str,
        *,
        interruptible: bool = False,
        limit: AnswerLimit | None = None,
    ) -> Any:
        """The value of a reference; an error names ``owner``, or the process that caused it.

        Raises:
            Unanswered: there is none within the limit.
            ActorDied: the process of an actor that was handed over is gone.
            ActorFailure: any other error.
            StallError, Interrupted: see :meth:`wait_until`.
        """
        return self.get_all([(ref, owner)], interruptible=interruptible, limit=limit)[0]

    def get_all(
        self,
        refs: Iterable[tuple[ray.ObjectRef, str]],
        *,
        interruptible: bool = False,
        limit: AnswerLimit | None = None,
    ) -> list[Any]:
        """The values of (reference, owner) pairs, in order; the first failure ends the wait.

        A PeerFailure does not: the call that caused it fails too, and its error says more.

        Raises:
            Unanswered: some have no value within the limit.
            ActorDied, ActorFailure, StallError, Interrupted: see :meth:`get`.
        """
        pairs = list(refs)
        if len(pairs) == 1 and (answer := self._answers.get(pairs[0][0])):
            return [self._value(answer, pairs[0][1])]
        owners = dict(pairs)
        values: dict[ray.ObjectRef, Any] = {}
        complaints: list[ActorFailure] = []

        def arrived(ref: ray.ObjectRef) -> None:
            if ref not in owners:
                return  # nobody waits for it any more
            try:
                values[ref] = self._value(self._answers[ref], owners[ref])
            except ActorFailure as failure:
                if not isinstance(failure.__cause__, PeerFailure):
                    raise
                complaints.append(failure)
                values[ref] = None

        def late(seconds: float) -> None:
            if limit and seconds > limit.seconds:
                missing = [owner for ref, owner in owners.items() if ref not in values]
                raise Unanswered(missing, f"no answer for {limit.seconds:g} s ({limit.key})")

        for ref in owners:
            self.when_ready(ref, arrived)
        what = ", ".join(dict.fromkeys(owners.values()))
        try:
            self.wait_until(
                lambda: len(values) == len(owners), what, interruptible=interruptible, late=late
            )
        finally:
            owners.clear()
        if complaints:
            raise complaints[-1]
        return [values[ref] for ref, _ in pairs]

    def _deal_with(
        self, ref: ray.ObjectRef, future: Future[Any], call: Callable[[ray.ObjectRef], object]
    ) -> None:
        self._answers[ref] = future
        try:
            call(ref)
        finally:
            del self._answers[ref]

    def _value(self, answer: Future[Any], owner: str) -> Any:
        """What has been answered."""
        try:
            return answer.result()
        except RayError as error:
            # An actor's method that raised such an error itself is alive: that is a RayTaskError.
            # What a lost node has kept for it is lost like the actor.
            lost = isinstance(error, ObjectLostError)
            gone = isinstance(error, RayActorError) or lost
            if gone and not isinstance(error, RayTaskError) and owner in self._handed_over:
                raise ActorDied(owner, told(error), never_ran=never_ran(error)) from error
            if isinstance(error, PeerFailure):  # all are alive, and one of them knows the cause
                raise ActorFailure(owner, told(error)) from error
            # A dead process if there is one, else the error itself.
            seconds = _LOST_OBJECT_SECONDS if lost else _ROOT_CAUSE_SECONDS
            death = self._next_death(seconds if self._lifelines else 0.0)
            raise (death or ActorFailure(owner, told(error))) from error

    def _next_death(self, timeout_s: float) -> ActorLost | None:
        """The death of an actor that ends any wait, if one died or does so within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        with suppress(queue.Empty):
            while True:
                name, lifeline = self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
                if self._lifelines.get(name) == lifeline:  # else handed over, or ended on purpose
                    self._ended.put((name, lifeline))  # a later wait must not miss it
                    return end_of(lifeline, name)
        return None


class _Timer:
    """What was to come later."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def __call__(self) -> None:
        self._call()


def _nothing() -> None:
    """An event that is only to be noticed."""
