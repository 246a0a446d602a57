"""What a part finds out, written down at once: a part that dies leaves what it had."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Findings:
    """Figures, checks and tables of one part, in a JSON file.

    Args:
        file: to write.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._content: dict[str, list[Any]] = {"figures": [], "checks": [], "tables": []}
        self._write()

    @property
    def failed(self) -> list[str]:
        """The checks that did not hold, in words."""
        return [
            f"{check['what']}: {check['value']:.3g}, at most {check['limit']:.3g} expected"
            for check in self._content["checks"]
            if not check["held"]
        ]

    def figure(self, what: str, value: float | str, unit: str = "") -> None:
        """Something to be known."""
        self._content["figures"].append({"what": what, "value": value, "unit": unit})
        self._write()

    def check(self, what: str, value: float, limit: float) -> None:
        """Something that may be at most ``limit``; NaN is not."""
        held = bool(value <= limit)
        self._content["checks"].append(
            {"what": what, "value": float(value), "limit": limit, "held": held}
        )
        self._write()

    def table(self, heads: list[str], rows: list[list[str]]) -> None:
        """Figures that belong side by side."""
        self._content["tables"].append({"heads": heads, "rows": rows})
        self._write()

    def _write(self) -> None:
        draft = self._file.with_suffix(".tmp")
        draft.write_text(json.dumps(self._content))
        os.replace(draft, self._file)


def read_findings(file: Path) -> dict[str, list[Any]]:
    """What a part wrote; nothing where it did not come to that."""
    if not file.is_file():
        return {"figures": [], "checks": [], "tables": []}
    return json.loads(file.read_text())
