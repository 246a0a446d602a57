"""Prompt sources: numbered raw rows, each with a place that an error message can name.

Prepared sets are one JSONL file a set, in one folder.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from opd_ray.borders import border
from opd_ray.config.data import DataKind, DataSettings
from opd_ray.data.benchmarks import BENCHMARKS, nearest
from opd_ray.data.files import matching_files
from opd_ray.data.jsonl import JsonlSource
from opd_ray.data.rows import DataError, MissingData
from opd_ray.import_path import load_object
from opd_ray.tasks.chain_sum import ChainSumGenerator
from opd_ray.user_code import users_code


class Source(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...

    def raw(self, number: int) -> Any:
        """The row as the source has it.

        Raises:
            BadRow: it cannot even be parsed.
        """
        ...

    def place(self, number: int) -> tuple[str, int]:
        """File (or source) name and line (or row), counted from 1."""
        ...

    def label(self, number: int) -> str:
        """The short name of the row's file (or source), for ids and for ``routes``."""
        ...


def spelled_place(source: Source, number: int) -> str:
    """Where a row stands, for messages."""
    name, line = source.place(number)
    return f"{name}, line {line}"


@dataclass(frozen=True)
class TableSource:
    """Rows of anything that gives a mapping by number: a list, an Arrow table, a data set."""

    name: str
    rows: Sequence[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, number: int) -> Any:
        return self.rows[number]

    def place(self, number: int) -> tuple[str, int]:
        return self.name, number + 1

    def label(self, number: int) -> str:
        return Path(self.name).name


@dataclass(frozen=True)
class PythonSource(TableSource):
    """Rows of a function of the user's, which may read each when it is asked for."""

    said: str  # the key with its value

    def raw(self, number: int) -> Any:
        with users_code(f"{self.said}, row {number + 1}", DataError):
            return self.rows[number]


def open_source(
    settings: DataSettings, section: str = "data", columns: Collection[str] | None = ()
) -> Source:
    """The source that the settings name.

    Of Parquet files only the columns of ``settings.fields`` and ``columns`` can be read; all where
    that is None.

    Raises:
        ConfigError: a python function that is not where its path says.
        DataError: a source that is missing, empty or of another format.
    """
    source: Source
    match settings.kind:
        case DataKind.jsonl:
            source = JsonlSource(matching_files(settings.path, section), section)
        case DataKind.parquet:
            # Arrow only where it is needed: it is slow to import.
            from opd_ray.data.parquet import ParquetSource

            fields = settings.fields
            asked = columns if columns is None else {*columns, *filter(None, vars(fields).values())}
            files = matching_files(settings.path, section)
            source = ParquetSource(files, section, fields.prompt, asked)
        case DataKind.datasets:
            source = _datasets(settings, section)
        case DataKind.python:
            source = _python(settings, section)
        case DataKind.prepared:
            source = JsonlSource([prepared_file(settings.path, section)], section)
        case DataKind.chain_sum:
            source = _chain_sum(settings, section)
    if len(source) == 0:
        raise DataError(f"{section}.path = {settings.path!r} has no rows: give at least one prompt")
    return source


def _datasets(settings: DataSettings, section: str) -> Source:
    import datasets

    from opd_ray.data.arrow_rows import ArrowRows

    folder = Path(settings.path).expanduser()
    place = f"{section}.path = {settings.path!r}: the data set cannot be loaded"
    remedy = f"give a folder that datasets.save_to_disk wrote, or a name with {section}.subset"
    with border(place, remedy, DataError):
        if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(settings.path, settings.subset, split=settings.split)
    if isinstance(loaded, datasets.DatasetDict):
        if settings.split not in loaded:
            raise DataError(
                f"{section}.split = {settings.split!r}: {settings.path!r} has {', '.join(loaded)}"
            )
        loaded = loaded[settings.split]
    return TableSource(settings.path, ArrowRows(loaded))


def _python(settings: DataSettings, section: str) -> Source:
    function = load_object(settings.path, f"{section}.path")
    if not callable(function):
        raise DataError(f"{section}.path = {settings.path!r} is not a function that returns rows")
    with border(f"{section}.arguments", f"give what {settings.path} takes", DataError):
        inspect.signature(function).bind(**settings.arguments)
    said = f"{section}.path = {settings.path!r}"
    with users_code(said, DataError):
        rows = function(**settings.arguments)
        if not isinstance(rows, Iterable):
            raise DataError(
                f"{said} returned {type(rows).__name__}: return a sequence or iterator of rows"
            )
        # A sequence may read its rows from anywhere when asked; anything else is run through once.
        rows = rows if isinstance(rows, Sequence) else list(rows)
    return PythonSource(settings.path, rows, said)


def _chain_sum(settings: DataSettings, section: str) -> Source:
    chosen = settings.chain_sum
    generator = ChainSumGenerator(chosen.terms, chosen.digits, chosen.split.value, chosen.seed)
    try:
        problems = generator.take(chosen.count)
    except ValueError as error:
        raise DataError(f"{section}.chain_sum.count = {chosen.count}: {error}") from error
    return TableSource(
        "chain_sum",
        [{"prompt": p.prompt, "answer": p.answer, "worked": p.worked} for p in problems],
    )


FOLDER_VARIABLE = "OPD_RAY_DATA"


def prepared_folder() -> Path:
    """The folder that OPD_RAY_DATA names, or ``data`` in the current one."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "data").expanduser()


def prepared_file(name: str, section: str) -> Path:
    """The file of a prepared set: ``math500`` in the usual folder, or ``some/folder/math500``.

    Raises:
        MissingData: it is not there; says how to make it.
        DataError: there is no set of that name.
    """
    given = Path(name).expanduser()
    path = (given if given.parent != Path() else prepared_folder() / given).with_suffix(".jsonl")
    if path.is_file():
        return path
    where = f"{FOLDER_VARIABLE} or a folder before the name says where prepared sets lie"
    problem = f"{section}.path = {name!r}: there is no {path}"
    if path.stem in BENCHMARKS:
        remedy = f"make it with: opd-ray prepare {path.stem} --out {path}"
        raise MissingData(f"{problem} ({remedy}; {where})")
    if path.stem.startswith("deepplanning_"):
        made = f"opd-ray prepare deepplanning --from CHECKOUT --out {path.parent}"
        raise MissingData(f"{problem} (make it with: {made}; {where})")
    raise DataError(
        f"{problem} (no set of that name can be prepared: {nearest(path.stem)}; {where})"
    )
