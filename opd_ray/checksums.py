"""Files known again by size and CRC-32, taken while they are written or by reading them.

A CRC-32 finds every change of up to 32 bits in a row and all but one in 4 billion others: a file
cut short, a page of zeros, a flipped bit. It is no protection against somebody who wants to
deceive. One core takes it of some 2-4 GB a second.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from opd_ray.borders import writing

# Short enough that a piece is still in the processor's cache when its sum is taken.
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class FileSum:
    """What a file must have."""

    size: int  # bytes
    crc32: int


class SummedFile:
    """A new file that is on disk, and its :class:`FileSum` known, when the ``with`` block ends.

    Raises:
        WriteError: it cannot be written, in any call.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("xb")
        self._size = self._crc32 = 0

    def __enter__(self) -> Self:
        return self

    def write(self, content: bytes | memoryview) -> None:
        """Add bytes."""
        view = memoryview(content)
        if not view.nbytes:
            return  # which cannot be cast
        view = view.cast("B")
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            with writing(self._path):
                self._file.write(piece)
            self._crc32 = zlib.crc32(piece, self._crc32)
        self._size += len(view)

    def __exit__(self, *raised: object) -> None:
        with writing(self._path), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    @property
    def sum(self) -> FileSum:
        """Of all that was written."""
        return FileSum(self._size, self._crc32)


def sum_of(path: Path, *, sync: bool = False) -> FileSum:
    """The sum of a file that is there.

    Args:
        path: of the file.
        sync: have what was written of it put on disk first.

    Raises:
        OSError: it cannot be read.
    """
    size = crc32 = 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(_PIECE_BYTES):
            size += len(piece)
            crc32 = zlib.crc32(piece, crc32)
    return FileSum(size, crc32)


def files_below(folder: Path) -> list[str]:
    """All files in a folder and below, by their path in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def first_difference(folder: Path, sums: Mapping[str, FileSum]) -> str | None:
    """The first of the files that is not what it was, and in what; None: all are.

    Reads every file whose size is right.
    """
    for name, expected in sums.items():
        path = folder / name
        try:
            size = path.stat().st_size
            found = sum_of(path) if size == expected.size else FileSum(size, 0)
        except FileNotFoundError:
            return f"{name} should have {expected.size} bytes, is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found.size != expected.size:
            return f"{name} should have {expected.size} bytes, has {found.size}"
        if found != expected:
            return f"{name} has the right size, but not the bytes that were written"
    return None
