"""Files in the temporary folder that have no name: their space is freed with their last use."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import IO

from opd_ray.borders import border
from opd_ray.data.rows import DataError


def making_room() -> AbstractContextManager[None]:
    """Around whatever writes into the temporary folder; a full one is said as such."""
    return border(
        f"the temporary folder {tempfile.gettempdir()}, into which data is unpacked",
        "make room in it, or let TMPDIR name another",
        DataError,
    )


def written_out(pieces: Iterable[bytes]) -> IO[bytes]:
    """A file that holds ``pieces``; what they raise passes as it is.

    Raises:
        DataError: it cannot be written.
    """
    with making_room():
        file = tempfile.TemporaryFile(prefix="opd_ray_")  # noqa: SIM115  (stays open)
    for piece in pieces:
        with making_room():
            file.write(piece)
    with making_room():
        file.seek(0)
    return file
