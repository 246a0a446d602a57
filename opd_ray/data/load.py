"""From settings to a checked `PromptSet`: bad rows, duplicates and lengths are settled here."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opd_ray.config.data import DataSettings, OverLength
from opd_ray.data.prompt_set import LoadReport, PromptSet, SourceReport
from opd_ray.data.rows import BadRow, DataError, PromptRow, RowReader
from opd_ray.data.sources import Source, open_source
from opd_ray.data.tokenize import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BAD_ROWS_SHOWN = 10
ROWS_TOKENIZED_AT_ONCE = 1000


def load_prompts(
    settings: DataSettings,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    section: str = "data",
) -> PromptSet:
    """Open the source, read every row once and keep the numbers of those to use.

    In this order: bad rows are refused, duplicates dropped, prompts longer than
    `max_prompt_tokens` refused or dropped (only with a tokenizer), the rest cut at `limit`.
    `seed` counts where `settings.seed` is null; `section` is what messages call the settings.
    Raises `ConfigError` for settings and `DataError` for data that no run can use.
    """
    settings.validate(section)
    source = open_source(settings, section)
    reader = RowReader(settings)
    prompts, ids, sources = _check_rows(source, reader, section)
    numbers = np.arange(len(source))
    if settings.deduplicate:
        numbers = np.sort(np.unique(prompts, return_index=True)[1])
    duplicates = len(source) - len(numbers)
    _refuse_repeated_ids(source, numbers, ids[numbers], section)

    too_long, longest, longest_teacher = 0, None, None
    shown: np.ndarray | None = None
    digests: np.ndarray | None = None
    if tokenizer is not None:
        lengths, digests = _tokenized(source, reader, numbers, tokenizer, settings)
        fits = lengths[:, 0] <= settings.max_prompt_tokens
        too_long = int((~fits).sum())
        if too_long:
            _judge_too_long(source, numbers, lengths[:, 0], settings, section)
        numbers, lengths, digests = (
            values[fits][: settings.limit] for values in (numbers, lengths, digests)
        )
        longest, longest_teacher = (int(length) for length in lengths.max(axis=0))
        shown = lengths[:, 1]
    else:
        numbers = numbers[: settings.limit]
    report = LoadReport(
        read=len(source),
        duplicates=duplicates,
        too_long=too_long,
        beyond_limit=len(source) - duplicates - too_long - len(numbers),
        longest_prompt=longest,
        longest_teacher_prompt=longest_teacher,
        sources=_by_source([sources[number] for number in numbers], shown),
    )
    order_seed = seed if settings.seed is None else settings.seed
    return PromptSet(source, reader, numbers, report, settings.shuffle, order_seed, digests)


def _by_source(sources: list[str], shown: np.ndarray | None) -> dict[str, SourceReport]:
    """`sources` and the lengths [rows] that a teacher is shown, of the rows in use."""
    found = {}
    names = np.array(sources, dtype=object)
    for name in dict.fromkeys(sources):
        here = names == name
        longest = None if shown is None else int(shown[here].max())
        found[name] = SourceReport(int(here.sum()), longest)
    return found


def _check_rows(
    source: Source, reader: RowReader, section: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Digests of all prompts and of all ids, uint64, and the rows' sources.

    Raises `DataError` that lists bad rows.
    """
    prompts = np.empty(len(source), dtype=np.uint64)
    ids = np.empty(len(source), dtype=np.uint64)
    sources: list[str] = []
    complaints: list[str] = []
    bad = 0
    for number in range(len(source)):
        try:
            row = reader.read(source.raw(number), *source.place(number))
        except BadRow as error:
            bad += 1
            if bad <= BAD_ROWS_SHOWN:
                complaints.append(f"  {_spell(source, number)}: {error}")
            continue
        prompts[number] = digest(json.dumps([row.text, row.messages, row.teacher_text]).encode())
        ids[number] = digest(row.id.encode())
        sources.append(sys.intern(row.source))
    if bad:
        if bad > BAD_ROWS_SHOWN:
            complaints.append(f"  and {bad - BAD_ROWS_SHOWN} more")
        raise DataError(
            f"{section}: {bad} of {len(source)} rows cannot be used; mend or remove them:\n"
            + "\n".join(complaints)
        )
    return prompts, ids, sources


def _refuse_repeated_ids(
    source: Source, numbers: np.ndarray, ids: np.ndarray, section: str
) -> None:
    """Seeds and results are filed under a prompt's id, so two prompts may not share one."""
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if (counts == 1).all():
        return
    one = first[counts > 1][0]
    other = np.flatnonzero(ids == ids[one])[1]
    raise DataError(
        f"{section}: {_spell(source, int(numbers[one]))} and "
        f"{_spell(source, int(numbers[other]))} have the same id: make ids unique, or set "
        f"{section}.fields.id to null, which numbers the rows"
    )


def _tokenized(
    source: Source,
    reader: RowReader,
    numbers: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """`[rows, 2]` prompt tokens for the student and the teacher, `[rows]` digests of the former."""

    def chunks() -> Iterator[list[PromptRow]]:
        for first in range(0, len(numbers), ROWS_TOKENIZED_AT_ONCE):
            chunk = map(int, numbers[first : first + ROWS_TOKENIZED_AT_ONCE])
            yield [reader.read(source.raw(number), *source.place(number)) for number in chunk]

    lengths: list[tuple[int, int]] = []
    digests: list[int] = []
    for rows in chunks():
        students = tokenize(rows, tokenizer, settings)
        digests += (digest(ids.tobytes()) for ids in students)
        own = [len(ids) for ids in students]
        shown = own
        if any(row.teacher_text is not None for row in rows):
            shown = [len(ids) for ids in tokenize(rows, tokenizer, settings, teacher=True)]
        lengths += zip(own, shown, strict=True)
    return np.array(lengths), np.array(digests, dtype=np.uint64)


def _judge_too_long(
    source: Source,
    numbers: np.ndarray,
    lengths: np.ndarray,
    settings: DataSettings,
    section: str,
) -> None:
    """Raises `DataError` when long prompts are refused, or when there is nothing else."""
    too_long = int((lengths > settings.max_prompt_tokens).sum())
    worst = int(lengths.argmax())
    if settings.over_length == OverLength.refuse or too_long == len(lengths):
        remedy = "" if too_long == len(lengths) else f", or set {section}.over_length to drop"
        raise DataError(
            f"{too_long} of {len(lengths)} prompts are longer than {section}.max_prompt_tokens = "
            f"{settings.max_prompt_tokens} (longest: {lengths[worst]} tokens, "
            f"{_spell(source, int(numbers[worst]))}): raise it{remedy}"
        )


def digest(content: bytes) -> int:
    """64 bits by which prompts and ids compare."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _spell(source: Source, number: int) -> str:
    name, line = source.place(number)
    return f"{Path(name)}, line {line}"
