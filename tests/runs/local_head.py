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
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """Where the job server answers, and the environment of a process that may talk to it."""

    address: str
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
        process, address = _started(folder, environment)
        try:
            yield Head(address, environment)
        finally:
            _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(folder: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    log = folder / "start.log"
    for _ in range(ATTEMPTS):
        gcs, dashboard, agent, client = _free_ports(4)
        address = f"http://127.0.0.1:{dashboard}"
        with log.open("w") as output:
            process = subprocess.Popen(
                [
                    *(BIN / "ray", "start", "--head", "--block", f"--temp-dir={folder}"),
                    *(f"--port={gcs}", f"--dashboard-port={dashboard}", "--include-dashboard=true"),
                    *(
                        f"--dashboard-agent-listen-port={agent}",
                        f"--ray-client-server-port={client}",
                    ),
                    *("--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"),
                ],
                env={**environment, "RAY_AUTH_MODE": "token"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if _comes_up(address, process):
            return process, address
        _end(process)
    raise RuntimeError(f"no head node came up:\n{log.read_text()}")


def _comes_up(address: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 401:  # it is up: this request came without the token
                time.sleep(5)  # parts that waited in vain for each other end by now
                return process.poll() is None
        except OSError:
            pass
        time.sleep(0.5)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
