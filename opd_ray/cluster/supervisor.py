"""Commands as child processes, one after another: nothing that one has started outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

import psutil

from opd_ray.errors import INTERRUPTED
from opd_ray.signals import PASSED_ON_BY, on_stop

# What a dead run has started ends by itself: Ray with its parent, Ray's workers some seconds later.
LEAVE_SECONDS = 3.0
# For processes that have been killed to be gone.
_KILLED_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_LIBC = ctypes.CDLL(None, use_errno=True)
# prctl(2): a signal when the parent dies; orphans below this process become its children.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Supervisor:
    """Use as a context manager, in the main thread of a process without other children.

    A signal that asks for a stop is passed on to the command at work, and ends a pause. A command
    is told to stop, too, when this process is killed.
    """

    def __init__(self, leave_seconds: float = LEAVE_SECONDS) -> None:
        self._stopped = False
        self._leave_seconds = leave_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._undo.callback(_prctl, _PR_SET_CHILD_SUBREAPER, 0)
        self._undo.enter_context(on_stop(self._stop))
        return self

    def __exit__(self, *raised: object) -> None:
        self._undo.close()

    def asked_to_stop(self) -> bool:
        """Whether a signal has asked for a stop."""
        return self._stopped

    def run(self, command: Sequence[str]) -> tuple[int, list[str]]:
        """Run a command to its end.

        Returns:
            its exit code, or minus the number of the signal that killed it; and the names of
            processes that it had started and that had to be killed.
        """
        parent = os.getpid()

        def end_with_parent() -> None:  # in the child
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(INTERRUPTED)

        child = self._child = subprocess.Popen(
            command, env={**os.environ, PASSED_ON_BY: str(parent)}, preexec_fn=end_with_parent
        )
        if self._stopped:  # while it was being started
            child.terminate()
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) and (
            ended.si_pid != child.pid
        ):
            os.waitpid(ended.si_pid, 0)  # an orphan of the command's
        code = child.wait()
        self._child = None
        return code, self._end_family()

    def pause(self, seconds: float) -> None:
        """Wait, until a stop is asked for."""
        deadline = time.monotonic() + seconds
        while not self._stopped and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))

    def _stop(self) -> None:
        self._stopped = True
        if self._child is not None:
            self._child.terminate()

    def _end_family(self) -> list[str]:
        """Wait for all below this process to end; kill, and name, those that do not in time."""
        if not self._family_within(self._leave_seconds):
            return []
        killed = []
        deadline = time.monotonic() + _KILLED_SECONDS
        while time.monotonic() < deadline and (family := self._family_within(0.0)):
            for process in family:
                try:
                    killed.append(f"{process.name()} ({process.pid})")
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            self._family_within(_LOOK_SECONDS)
        return list(dict.fromkeys(killed))

    def _family_within(self, seconds: float) -> list[psutil.Process]:
        """The processes below this one; those that are left after so long, or none before."""
        deadline = time.monotonic() + seconds
        while True:
            _reap()
            family = psutil.Process().children(recursive=True)
            if not family or time.monotonic() >= deadline:
                return family
            time.sleep(_LOOK_SECONDS)


def _reap() -> None:
    """Let go of the children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return  # there are none


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
