"""Ray's own two processes, as sockets: which end ends the program, when, and with what words."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd_ray.cluster.ray_guard import RayGuard, gcs_seconds


class Ray:
    """Two listening sockets, and what a guard of them says."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "raylet"
        self.raylet = socket.socket(socket.AF_UNIX)
        self.raylet.bind(str(self.socket))
        self.raylet.listen()
        self.gcs = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.gcs.getsockname()[1]}"
        self.said: queue.Queue[str] = queue.Queue()

    def guard(self, seconds: float = 0.0) -> RayGuard:
        return RayGuard(self.address, str(self.socket), seconds, self.said.put)

    def close(self) -> None:
        self.raylet.close()
        self.gcs.close()


@pytest.fixture
def ray() -> Iterator[Ray]:
    with tempfile.TemporaryDirectory() as folder:  # a short path, as sockets need
        ray = Ray(Path(folder))
        yield ray
        ray.close()


def end(listening: socket.socket) -> None:
    """Close a listening socket and the one connection to it, as the death of its process does."""
    connection, _ = listening.accept()
    listening.close()
    connection.close()


def test_the_end_of_the_raylet_is_said_at_once(ray: Ray) -> None:
    with ray.guard():
        connection, _ = ray.gcs.accept()
        end(ray.raylet)
        said = ray.said.get(timeout=30)
    connection.close()
    assert said.startswith("Ray's process on this machine (the raylet) is gone (it has closed")
    assert said.endswith("; the same command goes on from what the run has kept")


def test_the_end_of_the_head_process_names_its_address(ray: Ray) -> None:
    with ray.guard():
        end(ray.gcs)
        said = ray.said.get(timeout=30)
    assert said.startswith(f"Ray's head process (GCS) at {ray.address} is gone ([Errno 111]")


def test_a_head_process_that_comes_back_in_time_is_waited_for(ray: Ray) -> None:
    port = int(ray.address.split(":")[1])
    with ray.guard(5.0):
        end(ray.gcs)
        time.sleep(0.4)
        assert ray.said.empty()
        ray.gcs = socket.create_server(("127.0.0.1", port))
        ray.gcs.settimeout(5)
        connection, _ = ray.gcs.accept()
        connection.sendall(b"settings")  # what it says is of no interest
        ray.gcs.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ray.gcs.accept()  # the connection that there is does
        connection.close()
    assert ray.said.empty()


def test_one_that_stays_away_too_long_is_not(ray: Ray) -> None:
    with ray.guard(0.6):
        begin = time.monotonic()
        end(ray.gcs)
        assert "(GCS)" in ray.said.get(timeout=30)
        assert time.monotonic() - begin >= 0.6


def test_the_raylet_is_watched_while_the_head_process_is_away(ray: Ray) -> None:
    with ray.guard(60.0):
        end(ray.gcs)
        time.sleep(0.4)  # it is being looked for
        end(ray.raylet)
        assert "(the raylet)" in ray.said.get(timeout=30)


def test_leaving_says_nothing(ray: Ray) -> None:
    with ray.guard():
        connections = [listening.accept()[0] for listening in (ray.raylet, ray.gcs)]
    for connection in connections:
        assert connection.recv(1) == b""  # closed from there
        connection.close()
    assert ray.said.empty()


def test_how_long_the_head_process_may_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_gcs_rpc_server_reconnect_timeout_s", raising=False)
    assert (gcs_seconds(started_here=True), gcs_seconds(started_here=False)) == (0.0, 10.0)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    assert (gcs_seconds(started_here=True), gcs_seconds(started_here=False)) == (0.0, 598.0)


def test_the_program_ends_with_one_line_whatever_it_waits_for() -> None:
    code = (
        "import threading\n"
        "from opd_ray.cluster.ray_guard import end_program\n"
        "threading.Timer(0.05, end_program, ['it is gone']).start()\n"
        "threading.Event().wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "opd-ray: it is gone\n")
