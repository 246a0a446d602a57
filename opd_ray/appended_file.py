"""A file that records are added to, each of which is there in full or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from opd_ray.borders import writing


class AppendedFile:
    """An open file; :meth:`write` adds a record, and takes back what did not fit the disk.

    A process that is killed may leave the beginning of one record behind. Of lines it is known by
    the missing line break: see :func:`whole_lines`.

    Args:
        path: of the file, which is made, with its folder, where it is missing.
        lines: whether records are lines; then the beginning of one that was cut off goes first.

    Raises:
        WriteError: it cannot be opened.
    """

    def __init__(self, path: Path, *, lines: bool) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            if lines and self._file.tell():
                self._file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def write(self, record: bytes) -> None:
        """Add a record.

        Raises:
            WriteError: it cannot be written; the file is as it was.
        """
        with writing(self._path):
            end = self._file.seek(0, os.SEEK_END)
            left = memoryview(record)
            try:
                while left:
                    left = left[self._file.write(left) :]
            except BaseException:
                self._file.truncate(end)
                raise

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close it."""
        self._file.close()


def whole_lines(path: Path) -> list[str]:
    """The lines of a file of UTF-8 text without their breaks; one that was cut off is left out."""
    text = path.read_bytes()
    return text[: text.rfind(b"\n") + 1].decode().split("\n")[:-1]
