"""Parquet files as numbered rows, with only the rows that are asked for in memory."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet, types

from opd_ray.borders import border
from opd_ray.data.arrow_rows import ArrowRow
from opd_ray.data.files import SourceFiles
from opd_ray.data.rows import DataError
from opd_ray.data.unnamed import making_room


class ParquetSource:
    """The rows of Parquet files, each file with columns of its own, found by name.

    Parquet can only be read in large pieces, so the columns in use are decoded once, piece by
    piece, into Arrow files in the temporary folder (one for all files of the same columns), which
    are mapped into memory and have no name any more: their space on disk is freed with the last use
    of the rows.

    Args:
        paths: of the files.
        section: what messages call the settings.
        prompt: the column that must be text in all files, or a chat in all of them.
        columns: all that rows are asked for; a dotted name may reach into a nested column. None: of
            every column.

    Raises:
        DataError: a file that cannot be read, or prompts of two forms.
    """

    def __init__(
        self, paths: Sequence[Path], section: str, prompt: str, columns: Collection[str] | None
    ) -> None:
        schemas = [_schema(path, section) for path in paths]
        _refuse_two_forms(paths, schemas, section, prompt)
        self._names = [schema.names for schema in schemas]
        # Of every file: which of the Arrow files has its rows, and how many are before them there.
        self._where: list[tuple[int, int]] = []
        self._tables: list[pyarrow.Table] = []
        counts = []
        with ExitStack() as stack:
            arrow: dict[frozenset[pyarrow.Field], _ArrowFile] = {}
            for path, whole in zip(paths, schemas, strict=True):
                schema = _in_use(whole, columns)
                same = frozenset(schema)
                if same not in arrow:
                    arrow[same] = _ArrowFile(schema, len(arrow))
                    stack.callback(arrow[same].close)
                file = arrow[same]
                self._where.append((file.number, file.rows))
                before = file.rows
                for batch in _batches(path, file.schema):
                    file.write(batch)
                counts.append(file.rows - before)
            self._tables = [file.mapped() for file in arrow.values()]
        self._files = SourceFiles(paths, list(accumulate(counts)))

    def __len__(self) -> int:
        return len(self._files)

    def raw(self, number: int) -> Any:
        """The row as a mapping of its file's columns, of which those in use can be read."""
        file = self._files.number(number)
        table, before = self._where[file]
        return ArrowRow(self._tables[table], before + self._files.within(number), self._names[file])

    def place(self, number: int) -> tuple[str, int]:
        """Its file, and which of the file's rows it is, counted from 1."""
        return str(self._files.path(number)), self._files.within(number) + 1

    def label(self, number: int) -> str:
        """The short name of its file."""
        return self._files.label(number)


class _ArrowFile:
    """An Arrow file under way, in the temporary folder."""

    def __init__(self, schema: pyarrow.Schema, number: int) -> None:
        self.number = number
        self.rows = 0
        self.schema = schema
        with making_room():
            handle, self._name = tempfile.mkstemp(prefix="opd_ray_", suffix=".arrow")
            self._file = os.fdopen(handle, "wb")
            self._writer = ipc.new_file(self._file, schema)

    def write(self, batch: pyarrow.RecordBatch) -> None:
        with making_room():
            self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def mapped(self) -> pyarrow.Table:
        """All of it, mapped into memory; nothing can be written any more."""
        with making_room():
            self._writer.close()
            self._file.close()
        return ipc.open_file(pyarrow.memory_map(self._name)).read_all()

    def close(self) -> None:
        """Take its name away."""
        self._file.close()
        with making_room():
            os.unlink(self._name)


def _reading(path: Path) -> AbstractContextManager[None]:
    remedy = "give whole Parquet files, or set the kind that the file is of"
    return border(f"{path} cannot be read as Parquet", remedy, DataError)


def _schema(path: Path, section: str) -> pyarrow.Schema:
    """The columns of a file as they are read: without dictionaries and notes of other libraries.

    Raises:
        DataError: it cannot be read, or has two columns of one name.
    """
    with _reading(path):
        schema = parquet.read_schema(path)
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise DataError(
            f"{section}.path: {path} has several columns named {', '.join(map(repr, repeated))}: "
            "rename or remove all but one"
        )
    with _reading(path):
        return pyarrow.schema([(field.name, _decoded(field.type)) for field in schema])


def _in_use(schema: pyarrow.Schema, names: Collection[str] | None) -> pyarrow.Schema:
    """The columns that ``names`` ask for; where there is none the first, which counts the rows."""
    if names is None:
        return schema
    asked = {*names, *(name.split(".")[0] for name in names)}
    return pyarrow.schema([f for f in schema if f.name in asked] or list(schema)[:1])


def _batches(path: Path, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """A file, piece by piece, with the columns of ``schema``, which it has in any order."""
    with _reading(path):
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        for batch in file.iter_batches(columns=schema.names):
            columns = [batch.column(field.name) for field in schema]
            # Cast only where it is needed: Arrow breaks lists of nulls on the way.
            decoded = [
                column if column.type == kind else column.cast(kind)
                for column, kind in zip(columns, schema.types, strict=True)
            ]
            yield pyarrow.record_batch(decoded, schema)


def _decoded(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type without dictionaries, however deep: every piece may have a dictionary of its own."""
    if types.is_dictionary(kind):
        return kind.value_type
    if types.is_struct(kind):
        fields = [kind.field(n) for n in range(kind.num_fields)]
        return pyarrow.struct([field.with_type(_decoded(field.type)) for field in fields])
    if types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_decoded(kind.value_type)))
    if types.is_large_list(kind):
        return pyarrow.large_list(kind.value_field.with_type(_decoded(kind.value_type)))
    return kind


def _refuse_two_forms(
    paths: Sequence[Path], schemas: Sequence[pyarrow.Schema], section: str, prompt: str
) -> None:
    """Texts in one file and chats in another are hardly meant to be one set."""
    forms: dict[bool, Path] = {}  # is it nested -> the first file of that form
    for path, schema in zip(paths, schemas, strict=True):
        index = schema.get_field_index(prompt)
        if index >= 0 and not types.is_null(schema.types[index]):
            forms.setdefault(types.is_nested(schema.types[index]), path)
    if len(forms) == 2:
        raise DataError(
            f"{section}.path: column {prompt!r} (prompt) holds text in {forms[False]} and chat "
            f"messages in {forms[True]}: give all files one form, or name those of one form alone"
        )
