"""The audit of locked packages, where no database of vulnerabilities can be reached."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

AUDIT = Path(__file__).parents[2] / "launch" / "audit.sh"


def test_without_a_database_the_audit_says_that_it_is_skipped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    variables = {**os.environ, "OPD_RAY_AUDIT_URL": url, "PYTHON": sys.executable}
    ended = subprocess.run(
        ["bash", str(AUDIT)], env=variables, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0
    assert ended.stderr == (f"audit skipped: no database of vulnerabilities answers at {url}\n")
    assert ended.stdout == ""
