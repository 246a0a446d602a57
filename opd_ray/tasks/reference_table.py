"""The reference_table problems: totals along chains of references, through tables made on the fly.

The tables are numbered. One is seen by look-ups alone, a row each:

    Table 48213: start at C and follow next twice; total of price ?

A look-up of C shows its whole row, of which a cell or two are needed:

    C next H back E price 47 weight 52

All of a table follows from its number. Whether a table is for training or held out does so too, so
no choice of seeds can leak one into the other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from opd_ray.seeds import digest64

Split = Literal["train", "heldout"]

TOOL = "look_up"
ROWS = "ABCDEFGHIJ"
REFERENCES = ("next", "back")
NUMBERS = ("price", "weight")
HOPS = {1: "once", 2: "twice"}
TABLES = range(10_000, 100_000)
HELDOUT_ONE_IN = 10

_LAST_NUMBER = re.compile(r"(?<!\d)(\d+)\D*\Z")


@dataclass(frozen=True)
class TableRow:
    """One row: two references to other rows and two numbers from 10 to 99."""

    name: str
    cells: Mapping[str, str | int]

    def __str__(self) -> str:
        return f"{self.name} " + " ".join(f"{column} {it}" for column, it in self.cells.items())


@lru_cache(maxsize=1024)
def table_rows(table: int) -> Mapping[str, TableRow]:
    """All rows of a table by their names; every reference column is one cycle through them all."""
    rng = random.Random(f"reference table {table}")
    cells: dict[str, dict[str, str | int]] = {name: {} for name in ROWS}
    for column in REFERENCES:
        cycle = rng.sample(ROWS, len(ROWS))
        for name, other in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            cells[name][column] = other
    for column in NUMBERS:
        for name in ROWS:
            cells[name][column] = rng.randrange(10, 100)
    return {name: TableRow(name, cells[name]) for name in ROWS}


def look_up(table: int, name: object) -> str:
    """What a look-up of ``name`` shows, whatever that is."""
    rows = table_rows(table)
    return str(rows[name]) if isinstance(name, str) and name in rows else f"no row {name}"


def table_split(table: int) -> Split:
    """Of which split all problems of a table are."""
    held_out = digest64(f"reference table {table}".encode()) % HELDOUT_ONE_IN == 0
    return "heldout" if held_out else "train"


def tables_of(split: Split) -> list[int]:
    """All tables of a split, in their order."""
    return [table for table in TABLES if table_split(table) == split]


@dataclass(frozen=True)
class ReferenceProblem:
    """The total of one column over the rows of one chain."""

    table: int
    start: str
    along: str  # the column whose references are followed
    hops: int
    column: str  # the column whose numbers are added

    @property
    def question(self) -> str:
        return (
            f"Table {self.table}: start at {self.start} and follow {self.along} "
            f"{HOPS[self.hops]}; total of {self.column} ?"
        )

    @property
    def chain(self) -> list[TableRow]:
        """The rows to look up, in their order."""
        rows = table_rows(self.table)
        chain = [rows[self.start]]
        for _ in range(self.hops):
            chain.append(rows[str(chain[-1].cells[self.along])])
        return chain

    @property
    def numbers(self) -> list[int]:
        """What is to be added."""
        return [int(row.cells[self.column]) for row in self.chain]

    @property
    def answer(self) -> int:
        return sum(self.numbers)

    def is_answered(self, text: str) -> bool:
        """Whether the last number of a text is the total."""
        number = _LAST_NUMBER.search(text)
        return number is not None and int(number[1]) == self.answer


def draw_problem(table: int, hops: int, rng: random.Random) -> ReferenceProblem:
    """A problem of a table."""
    return ReferenceProblem(
        table, rng.choice(ROWS), rng.choice(REFERENCES), hops, rng.choice(NUMBERS)
    )


def draw_problems(tables: Sequence[int], count: int, rng: random.Random) -> list[ReferenceProblem]:
    """``count`` problems, each of another of the tables."""
    return [draw_problem(table, rng.choice([*HOPS]), rng) for table in rng.sample(tables, count)]


def problems(split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows for ``data.kind: python``, of as many different tables: a problem never comes twice.

    Raises:
        ValueError: an unknown split, or a count that it does not have.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split = {split!r}: use 'train' or 'heldout'")
    tables = tables_of(split)
    if not 1 <= count <= len(tables):
        raise ValueError(f"count = {count}: {split!r} has 1 to {len(tables)} tables")
    rng = random.Random(f"reference problems {split} {seed}")
    return [
        {"prompt": problem.question, "answer": str(problem.answer), **vars(problem)}
        for problem in draw_problems(tables, count, rng)
    ]
