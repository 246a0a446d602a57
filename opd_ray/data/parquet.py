"""Parquet files as numbered rows, with only the rows that are asked for in memory."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from opd_ray.data.rows import DataError


class ParquetSource:
    """The rows of Parquet files that have the same columns.

    Parquet can only be read in large pieces, so the files are decoded once, piece by piece, into an
    Arrow file in the temporary folder, which is mapped into memory and has no name any more: its
    space on disk is freed with the last use of the rows.

    Raises:
        DataError: a file that cannot be read or has other columns; ``section`` opens its message.
    """

    def __init__(self, paths: Sequence[Path], section: str) -> None:
        import pyarrow
        from pyarrow import ipc, parquet

        self._paths = list(paths)
        counts = []
        number, name = tempfile.mkstemp(prefix="opd_ray_", suffix=".arrow")
        path = self._paths[0]
        try:
            with os.fdopen(number, "wb") as file:
                schema = parquet.read_schema(path)
                with ipc.new_file(file, schema) as writer:
                    for path in self._paths:
                        opened = parquet.ParquetFile(path)
                        counts.append(opened.metadata.num_rows)
                        for batch in opened.iter_batches():
                            writer.write_batch(batch.cast(schema))
            self._table = ipc.open_file(pyarrow.memory_map(name)).read_all()
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, ValueError) as error:
            raise DataError(
                f"{section}.path: {path} cannot be read as Parquet with the columns of "
                f"{self._paths[0]}: {error}"
            ) from error
        finally:
            os.unlink(name)
        # Number of the first row of every file, and the number of all rows.
        self._starts = list(accumulate(counts, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def raw(self, number: int) -> Any:
        """The row as a dictionary."""
        return self._table.slice(number, 1).to_pylist()[0]

    def place(self, number: int) -> tuple[str, int]:
        """Its file, and which of the file's rows it is, counted from 1."""
        file = bisect_right(self._starts, number) - 1
        return str(self._paths[file]), number - self._starts[file] + 1
