"""What two runs must have in common to be the same."""

from __future__ import annotations

import json
from pathlib import Path

# What the clock decides in any run, by how it begins or by a word in it, and what deaths leave.
_BY_THE_CLOCK = ("memory/", "tokens_per_second/", "idle_share", "teacher/")
_SECONDS = "seconds"
_DEATHS = ("train/restarts", "rollout/restarts", "rollout/rewritten")


def figures(output: Path) -> list[dict[str, float]]:
    """All figures of all rows that do not measure time or memory."""
    rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    kept = [{name: row[name] for name in row if _is_told_by_the_seed(name)} for row in rows]
    return [row for row in kept if row.keys() != {"step"}]


def _is_told_by_the_seed(name: str) -> bool:
    return not (name.startswith(_BY_THE_CLOCK) or _SECONDS in name or name in _DEATHS)


def steps(output: Path) -> list[int]:
    """The steps in the metrics, as they stand there."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if "train/loss" in row]


def differences(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ, in words; nothing: they are the same, bit by bit."""
    found = []
    weights = [(run / "export" / "model.safetensors").read_bytes() for run in (one, other)]
    if weights[0] != weights[1]:
        found.append("other weights")
    first, second = figures(one), figures(other)
    if len(first) != len(second):
        found.append(f"{len(first)} rows of figures and {len(second)}")
    for row, same in zip(first, second, strict=False):
        names = sorted(n for n in row.keys() | same.keys() if row.get(n) != same.get(n))
        if names:
            found.append(f"step {row['step']}: {', '.join(names)}")
    return found
