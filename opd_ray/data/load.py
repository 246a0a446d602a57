"""From settings to a checked ``PromptSet``: bad rows, duplicates and lengths are settled here."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from opd_ray.borders import border
from opd_ray.config.data import DataSettings, OverLength
from opd_ray.data.cells import BadRow
from opd_ray.data.chat_template import template_notes
from opd_ray.data.prompt_account import PromptAccount
from opd_ray.data.prompt_set import LoadReport, PromptSet, SourceReport, problem_digest
from opd_ray.data.rows import BadRows, DataError, PromptRow, RowReader
from opd_ray.data.sources import Source, open_source, spelled_place
from opd_ray.data.tokenize import tokenize_for_both
from opd_ray.environments.by_source import NO_ENVIRONMENTS, RunEnvironments
from opd_ray.seeds import digest64

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_TOKENIZED_AT_ONCE = 1000


def load_prompts(
    settings: DataSettings,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    section: str = "data",
    day: date | None = None,
    environments: RunEnvironments = NO_ENVIRONMENTS,
) -> PromptSet:
    """Open the source, read every row once and keep the numbers of those to use.

    In this order: bad rows are refused, duplicates dropped, prompts longer than
    ``max_prompt_tokens`` refused or dropped (only with a tokenizer), the rest cut at ``limit``.
    ``seed`` counts where ``settings.seed`` is null; ``section`` is what messages call the settings,
    ``day`` what chat templates that read the clock are told; ``environments`` are given all columns
    of a row, and must find those there that they need.

    Raises:
        ConfigError: settings that no run can use.
        DataError: data that no run can use.
    """
    settings.validate(section)
    acts = environments.any
    source = open_source(settings, section, None if acts else ())
    reader = RowReader(settings, all_columns=acts)
    rows = _Rows(source, reader, settings, section, environments)
    read = len(rows.source)
    prompts, ids, sources = rows.check()
    numbers = np.arange(read)
    if settings.deduplicate:
        numbers = np.sort(np.unique(prompts, return_index=True)[1])
    duplicates = read - len(numbers)
    rows.refuse_repeated_ids(numbers, ids[numbers])

    too_long, longest = 0, None
    shown: np.ndarray | None = None
    digests: np.ndarray | None = None
    notes: list[str] = []
    if tokenizer is not None:
        notes = [*template_notes(tokenizer, settings, section, day)]
        account = PromptAccount()
        lengths, digests = rows.tokenized(numbers, tokenizer, day, account)
        notes += account.notes(section)
        fits = lengths[:, 0] <= settings.max_prompt_tokens
        too_long = int((~fits).sum())
        if too_long:
            rows.judge_too_long(numbers, lengths[:, 0], too_long)
        numbers, lengths, digests = (
            values[fits][: settings.limit] for values in (numbers, lengths, digests)
        )
        longest = int(lengths[:, 0].max())
        shown = lengths[:, 1]
    else:
        numbers = numbers[: settings.limit]
    report = LoadReport(
        read=read,
        duplicates=duplicates,
        too_long=too_long,
        beyond_limit=read - duplicates - too_long - len(numbers),
        longest_prompt=longest,
        sources=_by_source([sources[number] for number in numbers], shown),
        notes=tuple(notes),
    )
    order_seed = seed if settings.seed is None else settings.seed
    shown_digests = prompts[numbers] if digests is None else np.stack([prompts[numbers], digests])
    fingerprint = f"{digest64(shown_digests.tobytes()):016x}"
    return PromptSet(rows.read, numbers, report, settings.shuffle, order_seed, digests, fingerprint)


def _by_source(sources: list[str], shown: np.ndarray | None) -> dict[str, SourceReport]:
    """``sources`` and the lengths [rows] that a teacher is shown, of the rows in use."""
    found = {}
    names = np.array(sources, dtype=object)
    for name in dict.fromkeys(sources):
        here = names == name
        longest = None if shown is None else int(shown[here].max())
        found[name] = SourceReport(int(here.sum()), longest)
    return found


@dataclass(frozen=True)
class _Rows:
    """All rows of a source, by number."""

    source: Source
    reader: RowReader
    settings: DataSettings
    section: str  # what messages call the settings
    environments: RunEnvironments

    def read(self, number: int) -> PromptRow:
        label, line = self.source.label(number), self.source.place(number)[1]
        place = spelled_place(self.source, number)
        return self.reader.read(self.source.raw(number), label, line, place)

    def check(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Digests of all prompts and of all ids, [rows] uint64, and the rows' sources.

        Raises:
            DataError: lists bad rows.
        """
        prompts, ids = np.empty((2, len(self.source)), dtype=np.uint64)
        sources: list[str] = []
        bad = BadRows()
        for number in range(len(self.source)):
            try:
                row = self.read(number)
                self.refuse_missing_columns(row)
                content: list[Any] = [row.text, row.messages, row.teacher_text]
                if self.environments.of(row.source) is not None:
                    # An environment may make another problem of every column.
                    content.append(row.columns)
                with border("messages or columns", "give texts, numbers and lists alone", BadRow):
                    # Messages may carry dates and the like in keys of their own.
                    spelled = json.dumps(content, default=str)
            except BadRow as error:
                bad.add(spelled_place(self.source, number), error)
                continue
            prompts[number] = digest64(spelled.encode())
            ids[number] = digest64(row.id.encode())
            sources.append(sys.intern(row.source))
        if bad.count:
            raise DataError(
                f"{self.section}: {bad.count} of {len(self.source)} rows cannot be used; "
                f"mend or remove them:\n{bad}"
            )
        return prompts, ids, sources

    def refuse_missing_columns(self, row: PromptRow) -> None:
        """The environment of a row is reset to its columns.

        Raises:
            BadRow: it needs others.
        """
        there = {*row.columns, "prompt", "rollout_seed"}
        needed = self.environments.columns_of(row.source)
        if missing := [name for name in needed if name not in there]:
            raise BadRow(
                f"its environment's reset needs {', '.join(missing)}, which it does not have; it "
                f"has {', '.join(row.columns)}: name the column so in the data, or give the "
                "parameter a default"
            )

    def refuse_repeated_ids(self, numbers: np.ndarray, ids: np.ndarray) -> None:
        """Seeds and results are filed under a prompt's id, so two prompts may not share one."""
        _, first, counts = np.unique(ids, return_index=True, return_counts=True)
        if (counts == 1).all():
            return
        one = first[counts > 1][0]
        other = np.flatnonzero(ids == ids[one])[1]
        raise DataError(
            f"{self.section}: {spelled_place(self.source, int(numbers[one]))} and "
            f"{spelled_place(self.source, int(numbers[other]))} have the same id: make ids unique, "
            f"or set {self.section}.fields.id to null, which numbers the rows"
        )

    def tokenized(
        self,
        numbers: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        day: date | None,
        account: PromptAccount,
    ) -> tuple[np.ndarray, np.ndarray]:
        """[rows, 2] prompt tokens for student and teacher, [rows] digests of the problems."""
        lengths: list[tuple[int, int]] = []
        digests: list[int] = []
        for first in range(0, len(numbers), ROWS_TOKENIZED_AT_ONCE):
            chunk = numbers[first : first + ROWS_TOKENIZED_AT_ONCE]
            rows = [self.read(int(number)) for number in chunk]
            students, teachers = tokenize_for_both(
                rows,
                tokenizer,
                self.settings,
                section=self.section,
                day=day,
                account=account,
                environments=self.environments,
            )
            acts = [self.environments.of(row.source) is not None for row in rows]
            digests += (
                problem_digest(ids, row.columns if columns_count else None)
                for row, ids, columns_count in zip(rows, students, acts, strict=True)
            )
            lengths += zip(map(len, students), map(len, teachers), strict=True)
        return np.array(lengths), np.array(digests, dtype=np.uint64)

    def judge_too_long(self, numbers: np.ndarray, lengths: np.ndarray, too_long: int) -> None:
        """Refuse long prompts where the settings ask for that, or where there is nothing else."""
        nothing_else = too_long == len(lengths)
        if self.settings.over_length == OverLength.drop and not nothing_else:
            return
        worst = int(lengths.argmax())
        remedy = "" if nothing_else else f", or set {self.section}.over_length to drop"
        raise DataError(
            f"{too_long} of {len(lengths)} prompts are longer than "
            f"{self.section}.max_prompt_tokens = {self.settings.max_prompt_tokens} (longest: "
            f"{lengths[worst]} tokens, {spelled_place(self.source, int(numbers[worst]))}): "
            f"raise it{remedy}"
        )
