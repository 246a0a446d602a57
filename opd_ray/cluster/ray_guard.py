"""Notices within seconds that Ray itself is dead, and ends the program with a sentence.

Ray tells of a head process (GCS) that is gone after a minute, and then ends the program from C++.
Nothing can be asked of the actors any more, and Ray's own functions may wait for ever: so nothing
is waited for here.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable

from opd_ray.errors import RUN_FAILED

# How long a head process may be away, where somebody else may start it again.
GCS_SECONDS = 10.0
# Seconds that Ray itself waits for it, in its own words and its own variable: set by who has a head
# process that is started again and finds everything as it was.
_RAYS_OWN = "RAY_gcs_rpc_server_reconnect_timeout_s"
_BEFORE_RAY = 2.0  # seconds
_CONNECT_SECONDS = 2.0
_TRY_SECONDS = 0.25
_GO_ON = "the same command goes on from what the run has kept"


class RayGuard:
    """Use as a context manager around what needs Ray.

    Holds a connection to each of the two, whose end is noticed at once.

    Args:
        gcs_address: HOST:PORT of the cluster's head process.
        raylet_socket: path of the socket of Ray's process on this machine.
        gcs_seconds: how long the head process may be away.
        end: called, in a thread of its own, with the sentence to end with.
    """

    def __init__(
        self,
        gcs_address: str,
        raylet_socket: str,
        gcs_seconds: float,
        end: Callable[[str], object] | None = None,
    ) -> None:
        self._gcs_address = gcs_address
        self._raylet_socket = raylet_socket
        self._gcs_seconds = gcs_seconds
        self._end = end or end_program
        self._left, self._leave = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="ray-guard", daemon=True)

    def __enter__(self) -> RayGuard:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._leave.close()
        self._thread.join()
        self._left.close()

    def _watch(self) -> None:
        if death := self._first_death():
            self._end(death)

    def _first_death(self) -> str | None:
        """What has died, in a sentence; None: left before."""
        raylet = socket.socket(socket.AF_UNIX)
        with raylet:
            try:
                raylet.connect(self._raylet_socket)
            except OSError as error:
                return _no_raylet(str(error))
            away_since = time.monotonic()
            while True:
                try:
                    gcs = self._gcs()
                except OSError as error:
                    if time.monotonic() - away_since >= self._gcs_seconds:
                        return (
                            f"Ray's head process (GCS) at {self._gcs_address} is gone ({error}); "
                            f"{_GO_ON}"
                        )
                    ended = _first_ended(self._left, raylet, seconds=_TRY_SECONDS)
                else:
                    with gcs:
                        ended = _first_ended(self._left, raylet, gcs)
                    away_since = time.monotonic()
                if ended is self._left:
                    return None
                if ended is raylet:
                    return _no_raylet("it has closed its connection")

    def _gcs(self) -> socket.socket:
        """A connection to the head process."""
        host, _, port = self._gcs_address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS)


def gcs_seconds(started_here: bool) -> float:
    """How long the head process may be away: not at all if it is the run's own."""
    if started_here:
        return 0.0
    if own := os.environ.get(_RAYS_OWN):
        return max(0.0, float(own) - _BEFORE_RAY)
    return GCS_SECONDS


def end_program(sentence: str) -> None:
    """Print it and end at once: whatever waits for Ray would not notice anything else."""
    line = "\n" if os.isatty(2) else ""  # there may be a progress bar
    os.write(2, f"{line}opd-ray: {sentence}\n".encode(errors="backslashreplace"))
    os._exit(RUN_FAILED)


def _no_raylet(why: str) -> str:
    return f"Ray's process on this machine (the raylet) is gone ({why}); {_GO_ON}"


def _first_ended(*connections: socket.socket, seconds: float | None = None) -> socket.socket | None:
    """The first of the connections that has ended; None: none has for so long."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN | select.POLLRDHUP)
    by_number = {connection.fileno(): connection for connection in connections}
    while found := poll.poll(None if seconds is None else seconds * 1000):
        for connection in (by_number[number] for number, _ in found):
            if _has_ended(connection):
                return connection
    return None


def _has_ended(connection: socket.socket) -> bool:
    """Whether nothing comes any more; what has come is of no interest."""
    connection.setblocking(False)
    try:
        return not connection.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True
