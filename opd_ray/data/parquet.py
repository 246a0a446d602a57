"""Parquet files as rows by number, with only the rows that are asked for in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd_ray.data.prompt import DataError


def parquet_rows(paths: Sequence[Path], section: str) -> Sequence[Any]:
    """The rows of Parquet files of one schema, as dictionaries.

    Parquet can only be read in large pieces, so the files are decoded once, piece by piece, into an
    Arrow file in the temporary folder, which is mapped into memory and has no name any more: its
    space on disk is freed with the last use of the rows.
    Raises `DataError` that names the file that cannot be read or has other columns.
    """
    import pyarrow
    from pyarrow import ipc, parquet

    number, name = tempfile.mkstemp(prefix="opd_ray_", suffix=".arrow")
    path = paths[0]
    try:
        with os.fdopen(number, "wb") as file:
            schema = parquet.read_schema(path)
            with ipc.new_file(file, schema) as writer:
                for path in paths:
                    for batch in parquet.ParquetFile(path).iter_batches():
                        writer.write_batch(batch.cast(schema))
        table = ipc.open_file(pyarrow.memory_map(name)).read_all()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, ValueError) as error:
        raise DataError(
            f"{section}.path: {path} cannot be read as Parquet with the columns of {paths[0]}: "
            f"{error}"
        ) from error
    finally:
        os.unlink(name)
    return _ArrowRows(table)


class _ArrowRows(Sequence[Any]):
    """An Arrow table (`pyarrow.Table`) as a sequence of dictionaries."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, number: Any) -> Any:
        return self._table.slice(number, 1).to_pylist()[0]
