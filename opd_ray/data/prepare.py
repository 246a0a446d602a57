"""``opd-ray prepare``: a well-known set from the hub or local files to opd-ray's own JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.config.data import DataKind, DataSettings
from opd_ray.data.benchmarks import BENCHMARKS, Benchmark
from opd_ray.data.cells import BadRow, WrittenFloat, cell_text, refuse_half_characters
from opd_ray.data.rows import BadRows, DataError
from opd_ray.data.sources import Source, TableSource, open_source, spelled_place
from opd_ray.errors import ConfigError, WriteError
from opd_ray.seeds import digest64
from opd_ray.whole_file import whole_file

_COMPRESSED = (".gz", ".zst", ".bz2")
_KINDS = {".jsonl": DataKind.jsonl, ".parquet": DataKind.parquet}


@dataclass(frozen=True)
class PrepareReport:
    """What became of the rows of a set."""

    benchmark: Benchmark
    origin: str
    out: Path
    read: int
    duplicates: int  # dropped rows whose prompt came before
    contradicting: int  # those of them that give another answer

    @property
    def written(self) -> int:
        return self.read - self.duplicates

    def __str__(self) -> str:
        lines = [
            f"{self.benchmark.title} from {self.origin}: {self.read:,} rows read, "
            f"{self.duplicates:,} duplicates dropped, {self.written:,} problems written to "
            f"{self.out}"
        ]
        if self.contradicting:
            lines.append(
                f"note: {self.contradicting:,} of the duplicates give another answer than the "
                "first row of their prompt, which is kept"
            )
        whole = self.benchmark.problems
        if whole is not None and self.written != whole:
            lines.append(f"note: the whole set has {whole:,} problems")
        lines.append(f"licence of the set: {self.benchmark.licence}")
        return "\n".join(lines)


def prepare(name: str, origins: Sequence[str], out: Path) -> PrepareReport:
    """Write the set ``name`` to ``out``, one problem a line: id, prompt, answer, source.

    Args:
        name: one of ``BENCHMARKS``.
        origins: local files (.jsonl, .json, .parquet; patterns too), a folder that ``datasets``
            reads, or a hub name; empty takes the set's own place on the hub.
        out: the file to write. It appears whole or not at all.

    Raises:
        ConfigError: an unknown name, or an ``out`` that cannot be written.
        DataError: an origin that cannot be read, or bad rows, by file and line.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"prepare {name!r}: there is {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    origins = list(origins) or [benchmark.hub]
    first: dict[int, int] = {}  # digest of a prompt -> digest of its answer
    ids: dict[str, str] = {}  # id -> its place
    read = duplicates = contradicting = 0
    bad = BadRows()
    with ExitStack() as stack:
        try:
            file = stack.enter_context(whole_file(out))
        except WriteError as error:
            raise ConfigError(f"--out = {error}") from error
        for source in (_open(benchmark, origin) for origin in origins):
            for number in range(len(source)):
                read += 1
                place = spelled_place(source, number)
                try:
                    row = _convert(benchmark, source.raw(number), read - 1)
                    prompt, answer = (digest64(row[name].encode()) for name in ("prompt", "answer"))
                    if prompt in first:
                        duplicates += 1
                        contradicting += first[prompt] != answer
                        continue
                    first[prompt] = answer
                    if row["id"] in ids:
                        raise BadRow(f"id {row['id']!r} is that of {ids[row['id']]} too")
                    ids[row["id"]] = place
                except BadRow as error:
                    bad.add(place, error)
                    continue
                file.write(f"{json.dumps(row)}\n".encode())
        if bad.count:
            raise DataError(
                f"prepare {name}: {bad.count} of {read} rows cannot be used, so nothing was "
                f"written:\n{bad}"
            )
    return PrepareReport(benchmark, ", ".join(origins), out, read, duplicates, contradicting)


def _open(benchmark: Benchmark, origin: str) -> Source:
    """Local files by how their name ends; anything else is a folder or name for ``datasets``."""
    path = Path(origin)
    suffix = (path.with_suffix("") if path.suffix in _COMPRESSED else path).suffix
    if suffix == ".json":
        return _json_list(Path(origin).expanduser())
    settings = DataSettings(
        kind=_KINDS.get(suffix, DataKind.datasets),
        path=origin,
        subset=benchmark.subset,
        split=benchmark.split,
    )
    section = f"prepare {benchmark.name}: --from"
    try:
        columns = (*benchmark.prompt, *benchmark.answer, *benchmark.id)
        return open_source(settings, section, columns)
    except DataError as error:
        message = str(error).replace(f"{section}.path =", section)
        if settings.kind == DataKind.datasets:
            message += "; where the hub is out of reach, give a local copy's files with --from"
        raise DataError(message) from error


def _json_list(path: Path) -> Source:
    with border(f"--from {path}: cannot be read as JSON", "give a list of rows", DataError):
        rows = json.loads(path.read_text(encoding="utf-8-sig"), parse_float=WrittenFloat)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"--from {path}: a .json file must hold a list of rows")
    return TableSource(str(path), rows)


def _convert(benchmark: Benchmark, raw: Any, number: int) -> dict[str, str]:
    """One row in our form; ``number`` (from 0) makes the id of a row that has none."""
    if not isinstance(raw, Mapping):
        raise BadRow(f"a row must be an object with named columns, not {type(raw).__name__}")
    prompt = benchmark.clean_prompt(_prompt(_column(raw, benchmark.prompt, "problem")))
    answer = _column(raw, benchmark.answer, "answer")
    refuse_half_characters(prompt, "the problem")
    answer = benchmark.clean_answer(cell_text(answer, "the answer"))
    for what, text in (("problem", prompt), ("answer", answer)):
        if not text:
            raise BadRow(f"the {what} is empty")
    own_id = cell_text(next(_found(raw, benchmark.id), number), "the id")
    return {
        # A bare number would not say of which set.
        "id": f"{benchmark.name}-{own_id}" if own_id.isdecimal() else own_id,
        "prompt": prompt,
        "answer": answer,
        "source": benchmark.name,
    }


def _prompt(value: Any) -> str:
    """A text, or the one user message of a chat."""
    if isinstance(value, list):
        asked = [
            message.get("content")
            for message in value
            if isinstance(message, Mapping) and message.get("role") == "user"
        ]
        value = asked[0] if len(asked) == 1 else None
    if not isinstance(value, str):
        raise BadRow("the problem must be text, or a chat with one user message")
    return value


def _column(raw: Mapping[str, Any], names: Sequence[str], what: str) -> Any:
    for value in _found(raw, names):
        return value
    raise BadRow(f"no column for the {what} ({' or '.join(names)}); the row has {', '.join(raw)}")


def _found(raw: Mapping[str, Any], names: Sequence[str]) -> Iterator[Any]:
    """The values of those columns that the row has; dots reach into nested columns."""
    for name in names:
        value: Any = raw
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            yield value
