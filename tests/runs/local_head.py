"""A Ray head node with a job server on this machine, on free ports, for tests."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ATTEMPTS = 4  # Ray gives up by itself where a busy machine lets its parts wait for 15 s
START_SECONDS = 120
END_SECONDS = 10
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """Where the job server and the node answer, and the environment of who may talk to them."""

    address: str
    gcs_address: str  # that of a run that joins
    environment: dict[str, str]


@contextmanager
def local_head() -> Iterator[Head]:
    """Start a head node that wants a token; at the end stop its processes and no others."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: socket paths have at most 107 bytes
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"  # where jobs find their `python`
    environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    try:
        group, address, gcs = _started(folder, environment)
        try:
            yield Head(address, gcs, environment)
        finally:
            _end(group)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """The process group of a head node, the address of its job server, and its own."""
    log = folder / "start.log"
    for _ in range(ATTEMPTS):
        gcs, dashboard, agent, client = _free_ports(4)
        address = f"http://127.0.0.1:{dashboard}"
        with log.open("w") as output:
            start = subprocess.Popen(
                [
                    *(BIN / "ray", "start", "--head", f"--temp-dir={folder}"),
                    *(f"--port={gcs}", f"--dashboard-port={dashboard}", "--include-dashboard=true"),
                    f"--dashboard-agent-listen-port={agent}",
                    f"--ray-client-server-port={client}",
                    *("--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"),
                ],
                env={**environment, "RAY_AUTH_MODE": "token"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # what it leaves behind stays in its process group
            )
        if start.wait() == 0 and _answers(address):
            return start.pid, address, f"127.0.0.1:{gcs}"
        _end(start.pid)
    raise RuntimeError(f"no head node came up:\n{log.read_text()}")


def _answers(address: str) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 401:  # it is up: this request came without the token
                return True
        except OSError:
            pass
        time.sleep(0.5)
    return False


def _end(group: int) -> None:
    deadline = time.monotonic() + END_SECONDS
    try:
        while True:
            os.killpg(group, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(0.5)
    except ProcessLookupError:
        return  # none is left


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
