"""A command with all its processes, and the most memory that they held together."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path


def run_watched(command: list[str], log: Path, environment: dict[str, str]) -> int:
    """Run a command to its end; returns the peak memory of its processes."""
    peak = 0
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment
        )
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(1.0):
                peak = max(peak, _memory(_family(process.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        done.set()
        watcher.join()
    if status:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed:\n{log.read_text()[-4000:]}")
    return peak


def _family(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(after_name[1]), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _memory(pids: list[int]) -> int:
    """Proportional set sizes added up, bytes: what processes share counts once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024
