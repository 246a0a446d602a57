"""Demo runs in the process of the tests, which has imported what each command would import anew."""

from __future__ import annotations

from pathlib import Path

from launching import SMALL

from opd_ray.cli import main


def run(output: Path, *overrides: str) -> None:
    """A demo run at its smallest, with actors of its own, to its end."""
    assert main(["demo", f"run.output_dir={output}", *SMALL, *overrides]) == 0
