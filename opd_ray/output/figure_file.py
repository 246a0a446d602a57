"""Plots as PNG files, which are there in full or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from opd_ray.borders import writing
from opd_ray.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_figure(figure: Figure, path: Path) -> None:
    """Draw a figure at 120 dots an inch.

    Raises:
        WriteError: it cannot be written; a plot that is there stays.
    """
    drawn = io.BytesIO()
    with writing(path):
        figure.savefig(drawn, format="png", dpi=120)
    write_whole(path, drawn.getvalue())
