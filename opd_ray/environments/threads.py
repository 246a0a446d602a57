"""Threads for code that may never come back: reused while it does, left behind when it does not."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any


class WorkerThreads:
    """Daemon threads, as many as there is work at once.

    All are daemons, so that none holds up the end of the process; those of ``concurrent.futures``
    are waited for there.

    Args:
        name: of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._lost: set[Ticket] = set()
        self._closed = False

    @property
    def lost(self) -> int:
        """Threads that were given up and have not come back."""
        return len(self._lost)

    def run(self, work: Callable[[], Any], then: Callable[[Any], None]) -> Ticket:
        """Begin ``work`` in a thread that has none. Neither function may raise.

        Args:
            then: what is done with the outcome, once the thread is free for more.
        """
        ticket = Ticket(work, then)
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(self._ended, self._name)
        worker.tickets.put(ticket)
        return ticket

    def give_up(self, ticket: Ticket) -> None:
        """Expect the work no more; its thread ends with it, whenever that is."""
        with self._lock:
            if not ticket.ended:
                self._lost.add(ticket)

    def close(self) -> None:
        """End the threads without work, and others with theirs."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.tickets.put(None)

    def _ended(self, worker: _Worker, ticket: Ticket) -> bool:
        """Whether the thread is to wait for more work."""
        with self._lock:
            ticket.ended = True
            lost = ticket in self._lost
            self._lost.discard(ticket)
            if lost or self._closed:
                return False
            self._idle.append(worker)
            return True


class Ticket:
    """Work that a thread was given."""

    def __init__(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.work, self.then = work, then
        self.ended = False


class _Worker:
    def __init__(self, ended: Callable[[_Worker, Ticket], bool], name: str) -> None:
        self.tickets: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._ended = ended
        threading.Thread(target=self._run, daemon=True, name=name).start()

    def _run(self) -> None:
        while (ticket := self.tickets.get()) is not None:
            outcome = ticket.work()
            waits = self._ended(self, ticket)
            ticket.then(outcome)
            if not waits:
                return
            del ticket, outcome  # what they hold is not to live until the next one


class DaemonExecutor(ThreadPoolExecutor):
    """For event loops of code that may hang in ``asyncio.to_thread``: its threads are daemons."""

    def __init__(self) -> None:
        super().__init__()
        self._workers = WorkerThreads("environment executor")

    def submit(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """As the base class, but in a thread that nobody waits for."""
        future: Future[Any] = Future()

        def work() -> Callable[[], None]:
            try:
                return partial(future.set_result, function(*args, **named))
            except BaseException as error:  # the future is how the caller hears of it
                return partial(future.set_exception, error)

        future.set_running_or_notify_cancel()
        self._workers.run(work, lambda settle: settle())
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads without work; none is waited for."""
        self._workers.close()
