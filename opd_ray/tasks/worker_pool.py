"""Processes that answer JSON lines, started when needed and again after one of them has died."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd_ray.errors import RunError


class WorkerDied(RunError):
    """The process was ended before it answered; the next question starts a new one."""

    def __init__(self) -> None:
        super().__init__("a worker process was killed from outside while it was at work")


class _Worker:
    """One process: a script that says "ready", then answers every line with a line."""

    def __init__(self, script: Path, arguments: Sequence[str]) -> None:
        # -P keeps the script's folder off the import path, where names could hide other modules.
        command = [sys.executable, "-P", str(script), *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A group of its own: Ctrl-C does not reach it, and closing ends its children too.
            start_new_session=True,
        )
        if self._readline() != b"ready\n":
            code = self.close()
            raise RunError(
                f"the worker process ended with exit code {code} before it was ready; "
                f"to see why, run: {' '.join(command)}"
            )

    def ask(self, question: Any) -> Any:
        """The answer to one question.

        Raises:
            WorkerDied: the process ended instead of answering.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerDied from error
        reply = self._readline()
        if not reply:
            raise WorkerDied
        return json.loads(reply)

    def close(self) -> int:
        """End the process and its children; returns its exit code."""
        # Before wait() the group cannot have gone: its leader is at least a zombie.
        os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                # What is still buffered for a dead process has nowhere to go.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return code

    def _readline(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class WorkerPool:
    """Up to ``size`` processes running ``script``; safe to use from any number of threads."""

    def __init__(self, script: Path, arguments: Sequence[str], size: int) -> None:
        self._script = script
        self._arguments = tuple(arguments)
        self._size = size
        # Last in, first out: a few questions keep using the processes that already run.
        self._places: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._closed = False
        for _ in range(size):
            self._places.put(None)
        atexit.register(self.close)

    def ask(self, question: Any) -> Any:
        """The answer to one question.

        Raises:
            WorkerDied: the process died over it.
            RunError: none can start.
        """
        worker = self._places.get()
        try:
            if worker is None:
                if self._closed:
                    raise RuntimeError("the worker pool is closed")
                worker = _Worker(self._script, self._arguments)
            return worker.ask(question)
        except BaseException:
            # Dead, or interrupted between question and answer: of no use to the next one.
            if worker is not None:
                worker.close()
            worker = None
            raise
        finally:
            self._places.put(worker)

    def close(self) -> None:
        """End all processes, once the questions under way are answered."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for _ in range(self._size):
                worker = self._places.get()
                if worker is not None:
                    worker.close()
            for _ in range(self._size):
                self._places.put(None)
            atexit.unregister(self.close)
