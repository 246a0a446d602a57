"""A folder that one process writes at a time."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from opd_ray.errors import OutputFolderError

LOCK_FILE = "run.lock"


class FolderLock:
    """The lock of a folder, which is made if it is not there.

    It dies with its process, so a killed run never blocks the next one.

    Args:
        path: the folder.
        key: the configuration key or option that named it, for messages.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._name = f"{key} = {str(path)!r}"
        self._lock: int | None = None

    def acquire(self) -> None:
        """Raises OutputFolderError: the folder cannot be made, written or locked, or is in use."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputFolderError(
                f"{self._name}: cannot be written ({error.strerror}); "
                "choose a folder that you may write to"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 1000).decode(errors="replace") or "another process"
            os.close(lock)
            raise OutputFolderError(
                f"{self._name}: in use by {holder}; wait for it, stop it, or choose another folder"
            ) from None
        except OSError as error:
            os.close(lock)
            raise OutputFolderError(
                f"{self._name}: its file system cannot lock files ({error.strerror}); choose a "
                "folder on another one"
            ) from error
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(lock, 0)
        holder = f"process {os.getpid()} on {socket.gethostname()}, started {started}"
        os.pwrite(lock, holder.encode(), 0)
        self._lock = lock

    def release(self) -> None:
        """Let the next process have the folder."""
        assert self._lock is not None
        os.ftruncate(self._lock, 0)
        # Said aloud: closing alone would leave the lock with a process forked in the meantime.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._lock = None
