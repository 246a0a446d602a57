"""The report: ``report.md`` for eyes, ``report.json`` for programs. Names of people stay out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_check.runner import FAILED, HUNG, Outcome


def write_report(folder: Path, outcomes: Sequence[Outcome], about: dict[str, str]) -> Path:
    """Write both files anew; returns the one to read.

    Args:
        folder: for them.
        outcomes: so far, the machine's first.
        about: of the check as a whole.
    """
    content = {"about": about, "parts": [asdict(outcome) for outcome in outcomes]}
    _replace(folder / "report.json", _without_names(json.dumps(content, indent=1)))
    _replace(folder / "report.md", _without_names(_markdown(outcomes, about)))
    return folder / "report.md"


def _markdown(outcomes: Sequence[Outcome], about: dict[str, str]) -> str:
    lines = ["# opd-ray on this machine", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", "| part | shows | | s | reason |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.0f}" if outcome.seconds else ""
        reason = outcome.reason.replace("|", "/")[:200]
        cells = [outcome.part, outcome.says, outcome.state, seconds, reason]
        lines.append(f"| {' | '.join(cells)} |")
    for outcome in outcomes:
        lines += _section(outcome)
    return "\n".join(lines) + "\n"


def _section(outcome: Outcome) -> list[str]:
    found = dict(outcome.findings)
    if not outcome.last_lines and not any(found.values()):
        return []
    lines = ["", f"## {outcome.part}: {outcome.state}", ""]
    if outcome.state in (FAILED, HUNG) or outcome.last_lines:
        lines += [outcome.reason, "", "```", *outcome.last_lines, "```", ""]
    for figure in found.get("figures", []):
        lines.append(f"- {figure['what']}: {_number(figure['value'])} {figure['unit']}".rstrip())
    if checks := found.get("checks"):
        lines += ["", "| check | found | at most | |", "|---|---|---|---|"]
        for check in checks:
            held = "" if check["held"] else "**not held**"
            cells = [check["what"], f"{check['value']:.3g}", f"{check['limit']:.3g}", held]
            lines.append(f"| {' | '.join(cells)} |")
    for table in found.get("tables", []):
        lines += ["", f"| {' | '.join(table['heads'])} |", "|---" * len(table["heads"]) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in table["rows"]]
    return lines


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_names(text: str) -> str:
    """Paths below the repository and the home begin there."""
    root = str(Path(__file__).resolve().parents[2])
    for folder, short in ((root, "."), (os.path.expanduser("~"), "~")):
        if len(folder) > 1:
            text = text.replace(folder, short)
    return text


def _replace(file: Path, text: str) -> None:
    draft = file.with_suffix(".tmp")
    draft.write_text(text)
    os.replace(draft, file)


def today() -> str:
    """As a report says it."""
    return time.strftime("%Y-%m-%d")
