"""No limit and no duration hangs on the system's clock, which may jump: those read a steady one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What reads the system's clock, of the modules time and datetime.
JUMPING = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "utcnow", "today"}
# Who may, how often, and why a jump does no harm.
ALLOWED = {
    "opd_ray/output/sinks.py": (2, "the day shown in TensorBoard; files' numbers, which only rise"),
    "opd_ray/output/activity.py": (3, "moments that another process reads, shown only"),
    "opd_ray/output/progress.py": (2, "the same"),
    "opd_ray/output/status.py": (3, "who reads them"),
    "opd_ray/output/trackers.py": (1, "the moment of a figure, for a tracker"),
    "opd_ray/data/prompts.py": (1, "the day that chat templates are told, kept with the run"),
    "opd_ray/data/chat_template.py": (1, "the day that templates are told, where none is kept"),
    "actors/teacher/http/client.py": (1, "a server's date without a date of its own; bounded"),
}


def readings(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of every use of the system's clock, calls or not."""
    imported: dict[str, str] = {}  # names of functions that were imported by themselves
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            names = [(one.asname or one.name, one.name) for one in node.names]
            imported |= {name: own for name, own in names if own in JUMPING}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in JUMPING:
            of = node.value.attr if isinstance(node.value, ast.Attribute) else ""
            if (getattr(node.value, "id", of)) in ("time", "datetime", "date"):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Name) and node.id in imported:
            yield node.lineno, imported[node.id]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\nlimit = time.time() + 3", [(2, "time")]),
        ("import time\nlimit = time.monotonic() + 3", []),
        ("from datetime import datetime\ndatetime.now(UTC)", [(2, "now")]),
        ("import datetime\ndatetime.date.today()", [(2, "today")]),
        ("from time import time as clock\nlater(clock)", [(2, "time")]),
        ("field(default_factory=time.time)", [(1, "time")]),
        ("import time\ntime.perf_counter(); time.sleep(1)", []),
        ("self.time.wait(); row.now", []),
    ],
)
def test_uses_of_the_systems_clock_are_found(source: str, found: list[tuple[int, str]]) -> None:
    assert list(readings(source)) == found


def test_nothing_else_reads_the_systems_clock() -> None:
    found: dict[str, int] = {}
    for package in ("opd_ray", "actors"):
        for path in (ROOT / package).rglob("*.py"):
            if count := len(list(readings(path.read_text(encoding="utf-8")))):
                found[str(path.relative_to(ROOT))] = count
    assert found == {name: count for name, (count, _) in ALLOWED.items()}
