"""A run as a user starts it, in a process of its own, and the rows of its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def command_of(command: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """The command line of ``opd-ray`` and what follows it, with these keys."""
    keys = [f"{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "opd_ray", *command, *keys]


def run(
    folder: Path, command: Sequence[str], settings: Mapping[str, Any], overrides: Sequence[str]
) -> None:
    """Into ``folder``, with its log beside it; ``overrides`` come last.

    Raises:
        RuntimeError: it failed; says how its log ends, which may lie in a temporary folder.
    """
    words = [*command_of(command, {"run.output_dir": folder, **settings}), *overrides]
    with folder.with_suffix(".log").open("w+") as log:
        if code := subprocess.run(words, stdout=log, stderr=log).returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(words)}: exit code {code}\n{log.read()[-2000:]}")


def figures_of(folder: Path) -> list[dict[str, Any]]:
    """All rows that a run has written."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Those of its steps, without the first, in which engines warm up."""
    return [row for row in figures_of(folder) if "seconds/step" in row][1:]
