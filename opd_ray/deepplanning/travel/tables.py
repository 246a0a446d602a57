"""CSV files read as the benchmark reads them: every cell is text, or nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from opd_ray.borders import border
from opd_ray.deepplanning.checkout import MissingBenchmark

# A cell without a value. One object, so that equal cells are the same; it equals none, not itself.
NOTHING = float("nan")
Cell = str | float
Row = dict[str, Cell]
# Texts that stand for no value: those of pandas, by which the benchmark reads its files.
_NO_VALUE = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
_REMEDY = "unpack the database again"
# Read behind the last line: what swallows it is a quote that nothing closes.
_END = "end of the file"


@dataclass(frozen=True)
class Table:
    """The columns of a file, all of one length; equal texts are one object."""

    columns: dict[str, list[Cell]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, **equal: object) -> list[Row]:
        """The rows in which these columns hold these texts, in the order of the file.

        Raises:
            KeyError: no such column.
        """
        found: Sequence[int] = range(len(self))
        for column, wanted in equal.items():
            cells = self.columns[column]
            found = [number for number in found if cells[number] == wanted]
        return [self.row(number) for number in found]

    def row(self, number: int) -> Row:
        """A row by its number, from 0."""
        return {column: cells[number] for column, cells in self.columns.items()}

    @cached_property
    def coordinates(self) -> frozenset[Cell]:
        """Of a table of ways: all that ways begin or end at."""
        return frozenset(chain(self.columns["origin"], self.columns["destination"]))


def read_table(path: Path) -> Table:
    """The table of a CSV file in UTF-8, with its columns named in the first line.

    Rows may be shorter than that line, not longer. Lines of nothing but blanks are no rows.

    Raises:
        MissingBenchmark: the file cannot be read; names the line.
    """
    with border(str(path), _REMEDY, MissingBenchmark):
        text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise MissingBenchmark(f"{path}: line {line} has a NUL character; {_REMEDY}")
    reader = csv.reader(chain(io.StringIO(text, newline=""), [_END]))
    with border(str(path), _REMEDY, MissingBenchmark):
        rows = [(reader.line_num, row) for row in reader if row and not _blank(row)]
    if rows.pop()[1] != [_END]:
        raise MissingBenchmark(f"{path}: a quote in it is never closed; {_REMEDY}")
    if not rows:
        raise MissingBenchmark(f"{path}: is empty; {_REMEDY}")
    return Table(dict(_columns(path, rows)))


def _blank(row: list[str]) -> bool:
    return len(row) == 1 and row[0] != "" and not row[0].strip(" \t")


def _columns(path: Path, rows: list[tuple[int, list[str]]]) -> Iterator[tuple[str, list[Cell]]]:
    (_, names), *body = rows
    for line, row in body:
        if len(row) > len(names):
            raise MissingBenchmark(
                f"{path}: line {line} has {len(row)} cells under {len(names)} columns; {_REMEDY}"
            )
    if twice := {name for name in names if names.count(name) > 1}:
        raise MissingBenchmark(f"{path}: has the column {min(twice)!r} twice; {_REMEDY}")
    once: dict[str, Cell] = dict.fromkeys(_NO_VALUE, NOTHING)
    for number, name in enumerate(names):
        yield (
            name,
            [
                once.setdefault(row[number], row[number]) if number < len(row) else NOTHING
                for _, row in body
            ],
        )
