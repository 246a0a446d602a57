"""The first rows of a config's prompts, as an environment is reset to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd_ray.config.schema import Config
from opd_ray.data.cells import BadRow
from opd_ray.data.rows import DataError, RowReader
from opd_ray.data.sources import open_source, spelled_place
from opd_ray.data.tokenize import episode_start

_ROWS = 2


def rows_of_data(config: Config, source: str, tokenizer: Any) -> list[Mapping[str, Any]]:
    """The first two rows of ``data``, those of ``source`` where it is not empty.

    Args:
        config: of the run.
        source: of prompts.
        tokenizer: the student's.

    Raises:
        OpdError: the data cannot be read, or no row is of the source.
    """
    settings = config.data
    settings.validate()
    rows = open_source(settings, columns=None)
    reader = RowReader(settings, all_columns=True)
    found: list[Mapping[str, Any]] = []
    sources: dict[str, None] = {}
    for number in range(len(rows)):
        try:
            row = reader.read(rows.raw(number), rows.label(number), number + 1)
        except BadRow as error:
            raise DataError(f"{spelled_place(rows, number)}: {error}") from error
        sources[row.source] = None
        if source in ("", row.source):
            found.append(episode_start(row, tokenizer, settings, config.run.day).row)
        if len(found) == _ROWS:
            break
    if not found:
        raise DataError(
            f"--source {source}: no row of data has it; there is {', '.join(map(repr, sources))}"
        )
    return found
