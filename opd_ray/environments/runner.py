"""Calls into environments, beside the engine: bounded in number and in time."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from opd_ray.environments.threads import DaemonExecutor, WorkerThreads
from opd_ray.errors import RunError

_Function = TypeVar("_Function", bound=Callable[..., Any])

# A coroutine that is given up is asked to stop; one that has not done so by then counts as hung.
_TO_STOP_SECONDS = 0.5
# Threads that may hang at once, for each that may work.
_LOST_FOR_EACH_WORKER = 4


class NoAnswer(RunError):
    """A call whose answer will not come; its rollout goes on, or ends, without."""


class CallTimeout(NoAnswer):
    """A call took longer than it may."""

    @classmethod
    def after(cls, seconds: float) -> CallTimeout:
        """One that was given up after this time."""
        return cls(f"it took longer than environment.call_timeout_s = {seconds:g}")


class StillBusy(NoAnswer):
    """An earlier call into the same environment, given up for its time, has not come back."""


class EnvironmentGone(NoAnswer):
    """The environment's own process has ended."""


class CallFailed(RunError):
    """What a call raised in another process, in words."""


class TooManyHang(RunError):
    """So many calls hang that the process would drown in their threads."""


def bounded(method: _Function) -> _Function:
    """Mark a coroutine function that waits for another process and keeps to its time limit itself.

    It needs no thread to run in.
    """
    method.__bounded__ = True  # type: ignore[attr-defined]
    return method


class EnvironmentRunner:
    """An event loop in a thread of its own, and threads in which code of the user's runs.

    None of that code runs in the loop's thread, coroutines included: one that blocks costs its own
    rollout alone. A call that takes too long is given up and its place taken by another thread; its
    own ends when it will. No thread holds up the end of the process.

    Args:
        workers: calls at once.
        call_seconds: that a call may take.
    """

    def __init__(self, workers: int, call_seconds: float) -> None:
        self._seconds = call_seconds
        self._most_lost = _LOST_FOR_EACH_WORKER * workers
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(workers)
        self._threads = WorkerThreads("environment call")
        # What has ended: (key, what came back or was raised).
        self.ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True, name="environments").start()

    @property
    def hanging(self) -> int:
        """Calls that were given up for their time and have not come back."""
        return self._threads.lost

    def start(self, key: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Begin ``work``; its outcome appears in :attr:`ended` under ``key``."""

        async def run() -> None:
            try:
                outcome = await work()
            except Exception as error:
                outcome = error
            self.ended.put((key, outcome))

        asyncio.run_coroutine_threadsafe(run(), self._loop)

    async def call(
        self,
        owner: Busy,
        function: Callable[..., Any],
        *args: Any,
        read: Callable[[Any], Any] = lambda outcome: outcome,
    ) -> Any:
        """What a plain or a coroutine function returns, and raises.

        Args:
            owner: of the function; its calls run one after another.
            read: what is made of the outcome, which may be code of the user's too.

        Raises:
            CallTimeout: it took longer than ``call_seconds``.
            StillBusy: an earlier call of this owner goes on.
            TooManyHang: too many calls of any owner go on that were given up.
            RuntimeError: it raised what is no ``Exception``, such as ``SystemExit``.
        """
        if owner.busy:
            raise StillBusy("an earlier call into this environment has not come back")
        if getattr(function, "__bounded__", False):
            return read(await function(*args))
        async with self._slots:
            if self._threads.lost >= self._most_lost:
                raise TooManyHang(
                    f"{self._threads.lost} calls into environments hang, each for longer than "
                    f"environment.call_timeout_s = {self._seconds:g}, and a thread cannot be "
                    "ended: give such tools a time limit of their own, or set "
                    "environment.own_process=true"
                )
            ended: asyncio.Future[Outcome] = self._loop.create_future()
            owner.busy = True

            def work() -> Outcome:
                outcome = Outcome.of(lambda: read(owner.run(function, args)))
                owner.busy = False
                return outcome

            def then(outcome: Outcome) -> None:
                with suppress(RuntimeError):  # the runner is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(_settle, ended, outcome)

            ticket = self._threads.run(work, then)
            await asyncio.wait([ended], timeout=self._seconds)
            if ended.done():
                return ended.result().get()
            if owner.stop():
                await asyncio.wait([ended], timeout=_TO_STOP_SECONDS)
            if not ended.done():
                self._threads.give_up(ticket)
            raise CallTimeout.after(self._seconds)

    def close(self) -> None:
        """Stop; what still runs in a thread is forgotten."""
        if self._closed:
            return
        self._closed = True
        self._threads.close()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()


async def _cancel_others() -> None:
    """Cancel all that runs in this loop, and wait for it."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Busy:
    """Where the calls into one environment run: one at a time, in whichever thread.

    Its context variables and, for coroutines, its event loop stay from call to call, and are no
    other environment's. Between calls the loop stands still. :meth:`close` is the end.
    """

    def __init__(self) -> None:
        self.busy = False
        self._context = contextvars.copy_context()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """What it returns, awaited if need be; blocks."""
        outcome = self._context.run(function, *args)
        if not inspect.isawaitable(outcome):
            return outcome
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_default_executor(DaemonExecutor())
        self._task = self._loop.create_task(_awaited(outcome), context=self._context)
        try:
            return self._loop.run_until_complete(self._task)
        finally:
            self._task = None

    def close(self) -> None:
        """Close the loop, after the last call; one that hangs keeps it."""
        if self._loop is not None and not self.busy:
            self._loop.close()

    def stop(self) -> bool:
        """Ask a coroutine that runs to stop; whether there is one. From another thread."""
        loop, task = self._loop, self._task
        if loop is None or task is None:
            return False
        loop.call_soon_threadsafe(task.cancel)
        return True


class Outcome:
    """What a function returned or raised, for another thread; :meth:`get` has it."""

    def __init__(self, value: Any, error: Exception | None) -> None:
        self._value, self._error = value, error

    @classmethod
    def of(cls, function: Callable[[], Any]) -> Outcome:
        """Call it; even ``SystemExit`` is an outcome."""
        try:
            return cls(function(), None)
        except BaseException as error:  # a tool may even ask the process to exit
            return cls(None, _harmless(error))

    def get(self) -> Any:
        """What it returned; or raise what it raised.

        Raises:
            RuntimeError: in place of what is no ``Exception``, or ends coroutines.
        """
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            # Its traceback has this frame: a circle would keep what the tool held.
            self._error = None


# They are raised to say something to Python itself: the end of a coroutine or of a process.
_NO_ERRORS = (StopIteration, StopAsyncIteration)


def _harmless(error: BaseException) -> Exception:
    """An error that can be raised in any thread, and shown."""
    try:
        said = str(error)
    except BaseException as worse:
        said = f"(its text cannot be had: {type(worse).__name__})"
    else:
        if isinstance(error, Exception) and not isinstance(error, _NO_ERRORS):
            return error
    named = RuntimeError(f"{type(error).__name__}: {said}".removesuffix(": "))
    return named.with_traceback(error.__traceback__)


async def _awaited(outcome: Awaitable[Any]) -> Any:
    """Its outcome; what a loop lets through to its thread is an error like others."""
    try:
        return await outcome
    except (SystemExit, KeyboardInterrupt) as error:
        raise _harmless(error) from None


def _settle(ended: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not ended.done():
        ended.set_result(outcome)
