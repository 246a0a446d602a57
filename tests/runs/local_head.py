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

START_SECONDS = 180
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """Where the job server answers, and the environment of a process that may talk to it."""

    address: str
    environment: dict[str, str]


@contextmanager
def local_head() -> Iterator[Head]:
    """Start a head node that wants a token; at the end stop its processes and no others."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Unix socket paths have a limit of 107 bytes
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, agent, client = _free_ports(4)
    address = f"http://127.0.0.1:{dashboard}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"  # where jobs find their `python`
    environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    log = Path(folder, "start.log")
    with log.open("w") as output:
        head = subprocess.Popen(
            [
                BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}",
                f"--port={gcs}", f"--dashboard-port={dashboard}", "--include-dashboard=true",
                f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
                "--object-store-memory=100000000", "--disable-usage-stats",
            ],
            env={**environment, "RAY_AUTH_MODE": "token"},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _await(address, head, log)
        yield Head(address, environment)
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _await(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 401:  # it is up: this request came without the token
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the head node did not come up:\n{log.read_text()}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
