"""JSONL files as numbered rows, plain or compressed."""

from __future__ import annotations

import json
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from opd_ray.borders import border
from opd_ray.data.cells import BadRow, WrittenFloat
from opd_ray.data.files import SourceFiles
from opd_ray.data.rows import DataError
from opd_ray.data.unnamed import written_out

# By the first bytes of a file, whatever its name says.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_OTHERS = {
    b"PAR1": "is a Parquet file: set {section}.kind to parquet",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"\xff\xfe": "is UTF-16: write it anew in UTF-8, for example with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16: write it anew in UTF-8, for example with iconv -f UTF-16 -t UTF-8",
    b"{\0": "is UTF-16: write it anew in UTF-8, for example with iconv -f UTF-16LE -t UTF-8",
    b"\0{": "is UTF-16: write it anew in UTF-8, for example with iconv -f UTF-16BE -t UTF-8",
}
_PIECE = 1 << 20


class JsonlSource:
    """Lines of JSONL files. Keeps 16 bytes a line in memory, reads the lines when asked.

    Files that gzip, zstd or bzip2 has compressed are unpacked once, into a file in the temporary
    folder that has no name: its space on disk is freed with the last use of the rows.

    Raises:
        DataError: a file that cannot be read or is of another format; ``section`` is what messages
            call the settings.
    """

    def __init__(self, paths: Sequence[Path], section: str) -> None:
        # Of every row: where in its file it starts, in bytes, and which line of it it is.
        self._starts, self._lines = array("q"), array("q")
        self._unpacked: dict[int, IO[bytes]] = {}  # by number of the file
        self._lock = threading.Lock()  # an unpacked file has one position
        ends = []  # of every file: the number of rows up to its end
        for number, path in enumerate(paths):
            packing = _packing(path, section)
            if packing is not None:
                self._unpacked[number] = written_out(_pieces(path, packing))
                self._number_lines(self._unpacked[number])
            else:
                with _reading(path), path.open("rb") as file:
                    self._number_lines(file)
            ends.append(len(self._starts))
        self._files = SourceFiles(paths, ends)

    def __len__(self) -> int:
        return len(self._starts)

    def raw(self, number: int) -> Any:
        """The parsed line; floats remember their spelling."""
        line = self._line(number)
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRow(
                f"not UTF-8: {error.reason} at byte {error.start} of the line "
                f"({line[error.start : error.start + 1]!r}): write the file anew in UTF-8"
            ) from error
        try:
            # Also numbers of thousands of digits and brackets of a depth that nobody writes.
            with border("not valid JSON", "write one JSON object a line", BadRow):
                return json.loads(text, parse_float=WrittenFloat)
        except BadRow as error:
            cause = error.__cause__
            if not isinstance(cause, json.JSONDecodeError):
                raise
            raise BadRow(f"not valid JSON: {cause.msg} at column {cause.colno}") from cause

    def place(self, number: int) -> tuple[str, int]:
        """Its file, and which of the file's lines it is, counted from 1."""
        return str(self._files.path(number)), self._lines[number]

    def label(self, number: int) -> str:
        """The short name of its file."""
        return self._files.label(number)

    def _number_lines(self, lines: Iterable[bytes]) -> None:
        offset = 0
        for line_number, line in enumerate(lines, start=1):
            if line.strip():
                self._starts.append(offset)
                self._lines.append(line_number)
            offset += len(line)

    def _line(self, number: int) -> bytes:
        file_number = self._files.number(number)
        unpacked = self._unpacked.get(file_number)
        if unpacked is not None:
            with self._lock:
                unpacked.seek(self._starts[number])
                return unpacked.readline()
        path = self._files.path(number)
        with _reading(path), path.open("rb") as file:
            file.seek(self._starts[number])
            return file.readline()


def _reading(path: Path) -> AbstractContextManager[None]:
    return border(str(path), "give files that can be read", DataError)


def _packing(path: Path, section: str) -> str | None:
    """How a file is compressed; None for plain lines.

    Raises:
        DataError: it holds no lines at all.
    """
    with _reading(path), path.open("rb") as file:
        first = file.read(4)
    for begin, what in _OTHERS.items():
        if first.startswith(begin):
            raise DataError(f"{section}.path: {path} {what.format(section=section)}")
    return next((name for begin, name in _COMPRESSED.items() if first.startswith(begin)), None)


def _pieces(path: Path, packing: str) -> Iterator[bytes]:
    import pyarrow

    remedy = "the file is cut off or damaged: fetch or write it anew"
    with (
        border(f"{path}, compressed with {packing}", remedy, DataError),
        pyarrow.OSFile(str(path)) as file,
        pyarrow.CompressedInputStream(file, packing) as stream,
    ):
        while piece := stream.read(_PIECE):
            yield piece
