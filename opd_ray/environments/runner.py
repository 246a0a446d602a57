"""Calls into environments, beside the engine: bounded in number and in time."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class CallTimeout(Exception):
    """A call took longer than it may."""


class StillBusy(Exception):
    """An earlier call into the same environment, given up for its time, has not come back."""


class EnvironmentRunner:
    """An event loop in a thread of its own, and a thread for every plain call.

    A call that takes too long is given up; its thread ends when it will, and counts no more. All
    threads are daemons: none holds up the end of the process.

    Args:
        workers: plain calls at once.
        call_seconds: that a call may take.
    """

    def __init__(self, workers: int, call_seconds: float) -> None:
        self._seconds = call_seconds
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(workers)
        # What has ended: (key, what came back or was raised).
        self.ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="environments").start()

    def start(self, key: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Begin ``work``; its outcome appears in :attr:`ended` under ``key``."""

        async def run() -> None:
            try:
                outcome = await work()
            except Exception as error:
                outcome = error
            self.ended.put((key, outcome))

        asyncio.run_coroutine_threadsafe(run(), self._loop)

    async def call(self, owner: Busy, function: Callable[..., Any], *args: Any) -> Any:
        """What a plain or a coroutine function returns.

        Args:
            owner: of the function; it is called by one thread at a time.

        Raises:
            CallTimeout: it took longer than ``call_seconds``.
            StillBusy: an earlier call of this owner goes on.
        """
        if owner.busy:
            raise StillBusy
        if inspect.iscoroutinefunction(function):
            return await self._bounded(function(*args))
        async with self._slots:
            ended: asyncio.Future[Any] = self._loop.create_future()
            owner.busy = True

            def work() -> None:
                try:
                    outcome, failed = function(*args), None
                except BaseException as error:  # a tool may even ask the process to exit
                    outcome, failed = None, error
                owner.busy = False
                self._loop.call_soon_threadsafe(_settle, ended, outcome, failed)

            threading.Thread(target=work, daemon=True, name="environment call").start()
            outcome = await self._bounded(ended)
        return await self._bounded(outcome) if inspect.isawaitable(outcome) else outcome

    async def _bounded(self, awaited: Any) -> Any:
        try:
            return await asyncio.wait_for(awaited, self._seconds)
        except TimeoutError:
            raise CallTimeout from None

    def close(self) -> None:
        """Stop the loop; what still runs is forgotten."""
        self._loop.call_soon_threadsafe(self._loop.stop)


class Busy:
    """Whether a thread is inside an environment."""

    busy = False


def _settle(ended: asyncio.Future[Any], outcome: Any, failed: BaseException | None) -> None:
    if ended.done():  # given up for its time
        return
    if failed is None:
        ended.set_result(outcome)
    elif isinstance(failed, Exception):
        ended.set_exception(failed)
    else:
        ended.set_exception(RuntimeError(f"{type(failed).__name__}: {failed}"))
