"""The files of one source: which there are, and by which short names their rows are known."""

from __future__ import annotations

import glob
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from opd_ray.data.cells import BadRow, refuse_half_characters
from opd_ray.data.rows import DataError, MissingData


class SourceFiles:
    """Files and their rows, numbered file after file.

    Args:
        paths: of the files.
        ends: of every file, the number of all rows up to its end.
    """

    def __init__(self, paths: Sequence[Path], ends: Sequence[int]) -> None:
        self._paths, self._ends = list(paths), list(ends)
        self._labels = file_labels(self._paths)

    def __len__(self) -> int:
        """Rows of all files."""
        return self._ends[-1]

    def number(self, row: int) -> int:
        """Which of the files a row is in, from 0."""
        return bisect_right(self._ends, row)

    def within(self, row: int) -> int:
        """Which of that file's rows it is, from 0."""
        file = self.number(row)
        return row - (self._ends[file - 1] if file else 0)

    def path(self, row: int) -> Path:
        """The file that a row is in."""
        return self._paths[self.number(row)]

    def label(self, row: int) -> str:
        """The short name of that file."""
        return self._labels[self.number(row)]


def file_labels(paths: Sequence[Path]) -> list[str]:
    """A short name for every file: its own, or from the common folder on where two share one.

    Ids, and the seeds derived from them, must not depend on where the whole lies.
    """
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    whole = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in whole])
    return [Path(path).relative_to(common).as_posix() for path in whole]


def matching_files(pattern: str, section: str) -> list[Path]:
    """The file of that name, or those that the pattern matches, in the order of their names.

    Raises:
        MissingData: there is none.
        DataError: a folder, or a name that is no UTF-8.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise DataError(
            f"{section}.path = {pattern!r} is a folder: name a file in it, or a pattern "
            f"such as {str(path / '*')!r}"
        )
    found = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(filter(Path.is_file, found))
    if not files:
        raise MissingData(f"{section}.path = {pattern!r}: no such file (looked from {Path.cwd()})")
    for file in files:
        try:
            refuse_half_characters(str(file), "the name")
        except BadRow as error:
            raise DataError(
                f"{section}.path: a file's name is no UTF-8: {str(file)!a}; rename it"
            ) from error
    return files
