"""A part of the GPU check for tests, which behaves as its argument says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_check.findings import Findings


def run(findings: Findings, device: str, argument: str) -> None:
    behaviour, _, rest = argument.partition(":")
    findings.figure("GPUs", int(rest) if behaviour == "machine" else 0)
    findings.figure("why there is no GPU", "somebody took it")
    match behaviour:
        case "pass":
            findings.check("near enough", 0.1, 0.2)
            findings.table(["one", "two"], [["1", "2"]])
        case "check":
            findings.check("near enough", 0.3, 0.2)
            findings.check("a number", float("nan"), 1.0)
        case "raise":
            raise RuntimeError(f"no kernel image on {device} in {Path.cwd()}")
        case "crash":
            print("about to crash", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            print("waiting for NCCL", flush=True)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            # A daemon, as Ray's are.
            daemon = subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
            )
            Path(rest).write_text(str(daemon.pid))
            time.sleep(600)
