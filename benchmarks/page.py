"""The page of a benchmark: printed, and written where it is kept."""

from __future__ import annotations

from pathlib import Path


def publish(text: str, file: Path | None) -> None:
    """Print it; ``file``: where it is written too, if anywhere."""
    print(f"\n{text}")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(f"written to {file}")
