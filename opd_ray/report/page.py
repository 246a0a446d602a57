"""The page: data, style and script in one HTML file that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from opd_ray.report.compared_runs import OVER_PROBLEMS, compared_data
from opd_ray.report.page_data import run_data
from opd_ray.report.run_folder import RunFolder
from opd_ray.report.shown_rollouts import MOST_BYTES
from opd_ray.whole_file import write_whole

# In the order in which they need each other.
SCRIPTS = (
    "numbers",
    "rules",
    "drawing",
    "overview",
    "choice",
    "gantt",
    "answers",
    "tokens",
    "compare",
    "main",
)


def write_report(run: Path, page: Path, *, locked: bool | None = None) -> None:
    """Write the page of one run, of at most MOST_BYTES.

    Args:
        run: its folder.
        page: the file to write.
        locked: see :meth:`RunFolder.read`.

    Raises:
        InputError: the folder cannot be read.
        WriteError: the page cannot be written; one that is there stays.
    """
    found = RunFolder.read(run, locked=locked)
    write_whole(page, within(lambda room: run_data(found, room), found.name))


def write_comparison(runs: list[Path], page: Path) -> None:
    """Write the page that compares several runs.

    Raises:
        InputError: a folder cannot be read.
        WriteError: the page cannot be written; one that is there stays.
    """
    write_compared([RunFolder.read(run) for run in runs], page)


def write_compared(
    runs: list[RunFolder], page: Path, title: str | None = None, spread: str = OVER_PROBLEMS
) -> None:
    """The same of runs that are read already.

    Args:
        runs: what is compared.
        page: the file to write.
        title: of the page; None: the runs' names.
        spread: over what the standard errors of held-out figures are.
    """
    data = compared_data(runs, title, spread)
    write_whole(page, html(data, data["title"]))


def within(data: Callable[[int], dict[str, Any]], title: str, most: int = MOST_BYTES) -> str:
    """The page of what ``data`` gives for a room, which shrinks until the page is small enough."""
    room = most - len(html({}, title))
    while True:
        page = html(data(room), title)
        over = len(page.encode()) - most
        # What is no rollout is not left out; it is far below the limit.
        if over <= 0 or room < over:
            return page
        room -= over + 1000


def html(data: dict[str, Any], title: str) -> str:
    """The page: no text of the data can end the element that it stands in."""
    parts = {
        "title": _escaped(f"{title}, opd-ray"),
        "style": _asset("style.css"),
        "script": script(),
        "data": embedded(data),
    }
    page = _asset("page.html")
    pieces = page.split("@")
    # "@name@" stands between two others; names are none of CSS, which has "@media" alone.
    return "".join(parts.get(piece, piece) if i % 2 else piece for i, piece in enumerate(pieces))


def embedded(data: Any) -> str:
    """JSON of ASCII alone in which no markup can begin."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def script() -> str:
    """All that the page runs."""
    return "\n".join(_asset(f"{name}.js") for name in SCRIPTS)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _asset(name: str) -> str:
    return (resources.files("opd_ray.report") / "assets" / name).read_text(encoding="utf-8")
