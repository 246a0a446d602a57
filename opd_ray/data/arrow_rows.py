"""Rows of Arrow tables as mappings whose columns become Python values when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow
from pyarrow import types

from opd_ray.borders import border
from opd_ray.data.cells import BadRow


class ArrowRow(Mapping[str, Any]):
    """One row of a table; a column that cannot be read spoils only the rows that ask for it.

    Args:
        table: any number of rows, every column once.
        number: of the row, from 0.
        names: of all columns of the row, where the table holds only those that are asked for.
    """

    def __init__(
        self, table: pyarrow.Table, number: int, names: Sequence[str] | None = None
    ) -> None:
        self._table, self._number = table, number
        self._names = table.column_names if names is None else names

    def __getitem__(self, name: str) -> Any:
        """The value of a column.

        Raises:
            KeyError: there is no such column.
            BadRow: its value has no form in Python.
        """
        index = self._table.schema.get_field_index(name) if isinstance(name, str) else -1
        if index < 0:
            raise KeyError(name)
        with border(f"column {name!r}", "mend or remove the row", BadRow):
            return _value(self._table.column(index)[self._number])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class ArrowRows(Sequence[ArrowRow]):
    """The rows of a Hugging Face data set, without what its features would decode them to."""

    def __init__(self, dataset: Any) -> None:
        self._tables = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._tables)

    def __getitem__(self, number: Any) -> Any:
        return ArrowRow(self._tables[number : number + 1], 0)


@cache
def _short_floats(kind: pyarrow.DataType) -> bool:
    """Whether a type is or holds floats of fewer than 64 bits."""
    if types.is_float16(kind) or types.is_float32(kind):
        return True
    return any(_short_floats(kind.field(n).type) for n in range(kind.num_fields))


def _value(scalar: pyarrow.Scalar) -> Any:
    """As Python has it; a short float becomes the double of the same shortest spelling."""
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if not _short_floats(kind):
        return scalar.as_py()
    if types.is_struct(kind):
        return {kind.field(n).name: _value(scalar[n]) for n in range(kind.num_fields)}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_value(inner) for inner in scalar.values]
    if types.is_float16(kind) or types.is_float32(kind):
        short = np.float16 if types.is_float16(kind) else np.float32
        return float(str(short(scalar.as_py())))
    return scalar.as_py()
