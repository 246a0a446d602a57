"""The signals that end a program in order: Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes.

Whoever starts a program with SIGHUP ignored, as ``nohup`` does, keeps it ignored.
"""

from __future__ import annotations

import math
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# The process id of a parent that passes on the signals that it hears, for its child to know.
PASSED_ON_BY = "OPD_RAY_SIGNALS_PASSED_ON_BY"
# A terminal, or Ray that stops a job, tells such a parent and its child: the child hears it twice.
_TWICE_SECONDS = 1.0


@contextmanager
def on_stop(ask: Callable[[], None]) -> Iterator[None]:
    """Call ``ask``, in the main thread, at each of these signals during the block.

    One that comes from both a parent that passes it on and whoever told the parent counts once.
    """
    twice = _TWICE_SECONDS if os.environ.get(PASSED_ON_BY) == str(os.getppid()) else 0.0
    heard = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        now = time.monotonic()
        if now - heard >= twice:
            heard = now
            ask()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    old = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def stop_as_interrupt() -> Iterator[None]:
    """Each of these signals raises KeyboardInterrupt in the block, as Ctrl-C does."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with on_stop(interrupt):
        yield


@contextmanager
def unheard_below() -> Iterator[None]:
    """Processes that are started in the block do not hear the terminal close.

    It tells every process that was started from it. This one hears of it when the block ends.
    """
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def lead_nowhere(descriptor: int) -> None:
    """Let what is written to a descriptor from now on be lost."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _leave_closed_terminal() -> None:
    """What is written to a terminal that is gone goes nowhere from now on: writing would fail."""
    for descriptor in (1, 2):
        if _is_closed_terminal(descriptor):
            lead_nowhere(descriptor)


def _is_closed_terminal(descriptor: int) -> bool:
    if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
        return False
    try:
        os.write(descriptor, b"")  # a terminal that is gone refuses even that
    except OSError:
        return True
    return False
