"""Turn pip's installation report into lines of a lock file.

    python lock_from_report.py REPORT.json [--without NAME ...]

Keeps every package that a direct requirement reaches when the packages named by --without, and
whatever only they need, are left out. Prints "name==version" lines in alphabetical order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def locked_lines(report: dict[str, Any], without: Iterable[str]) -> list[str]:
    """The lock's lines for a report of ``pip install --dry-run --report`` (format version 1)."""
    packages = {canonicalize_name(p["metadata"]["name"]): p for p in report["install"]}
    left_out = {canonicalize_name(name) for name in without}
    pending = [
        (name, frozenset(package.get("requested_extras", ())))
        for name, package in packages.items()
        if package["requested"]
    ]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        name, extras = pending.pop()
        if name in left_out or (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in packages[name]["metadata"].get("requires_dist", ()):
            needed = Requirement(text)
            if _applies(needed, extras, report["environment"]):
                pending.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return [
        f"{name}=={packages[name]['metadata']['version']}" for name in sorted({n for n, _ in seen})
    ]


def _applies(needed: Requirement, extras: frozenset[str], environment: dict[str, str]) -> bool:
    return needed.marker is None or any(
        needed.marker.evaluate({**environment, "extra": extra}) for extra in (extras or {""})
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=argparse.FileType())
    parser.add_argument("--without", nargs="*", default=[])
    arguments = parser.parse_args()
    print("\n".join(locked_lines(json.load(arguments.report), arguments.without)))
