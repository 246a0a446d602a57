"""Every letter of an axis has its line in docs/architecture.md."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A name in lower case whose last part has a capital: logprobs_mK, hidden_1TD.
SUFFIX = re.compile(r"\b_?[a-z][a-z0-9_]*_([a-zA-Z0-9]*[A-Z][a-zA-Z0-9]*)\b")


def test_every_letter_in_the_code_is_in_the_table_once() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\w) \| .+ \|$", page, flags=re.MULTILINE)
    assert len(table) == len(set(table)) > 15
    used: dict[str, str] = {}
    for folder in ("opd_ray", "actors"):
        for file in (ROOT / folder).rglob("*.py"):
            for match in SUFFIX.finditer(file.read_text(encoding="utf-8")):
                used |= dict.fromkeys(match[1], f"{file}: {match[0]}")
    assert {letter: where for letter, where in used.items() if letter not in table} == {}
