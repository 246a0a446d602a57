"""``opd-ray prepare deepplanning --shopping``: the tasks of a level as prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.shopping.case import ANSWERS, PRODUCTS
from opd_ray.deepplanning.shopping.checkout import LEVELS, read_queries, read_system_prompt
from opd_ray.errors import ConfigError, InputError, WriteError
from opd_ray.whole_file import write_whole

SOURCE = "deepplanning_shopping"
_SHOWN = 5
_DATA_SET = "https://huggingface.co/datasets/Qwen/DeepPlanning"


def prepare_shopping(checkout: Checkout, cases: Path | None, out: Path, level: int) -> str:
    """Write ``out/deepplanning_shopping_LEVEL.jsonl``; returns what was written, in words.

    Args:
        cases: where the level's cases lie; None: in the clone.

    Raises:
        InputError: not a whole clone, or cases without their files.
        ConfigError: ``out`` cannot be written.
    """
    rows = [row | {"answer": None} for row in shopping_rows(checkout, cases, level)]
    path = out / f"deepplanning_shopping_{level}.jsonl"
    try:
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except WriteError as error:
        raise ConfigError(f"--out = {error}") from error
    return (
        f"DeepPlanning, shopping, level {level}: {len(rows)} tasks for evaluation in {path}\n"
        "licence of the benchmark: Apache-2.0"
    )


def shopping_rows(checkout: Checkout, cases: Path | None, level: int) -> list[dict[str, Any]]:
    """The tasks of a level as prompts for evaluation, in the clone's order.

    Args:
        cases: where ``case_1``, ``case_2``, ... or ``database_level1``, ... lie; None: in the
            clone, where the benchmark's archives unpack to.
        level: 1 to 3.

    Returns:
        Rows with ``id``, ``prompt`` (chat messages), ``source``, ``level``, ``case_folder`` (an
        absolute path).

    Raises:
        InputError: not a whole clone, no such level, or cases without their files.
    """
    if level not in LEVELS:
        raise InputError(f"DeepPlanning's shopping tasks have levels 1 to 3, not {level!r}")
    queries = read_queries(checkout, level)
    system = {"role": "system", "content": read_system_prompt(checkout, level)}
    given = checkout.shopping if cases is None else cases.expanduser()
    within = given / f"database_level{level}"
    folder = (within if within.is_dir() else given).resolve()
    rows: list[dict[str, Any]] = [
        {
            "id": f"shopping{level}_{query['id']}",
            "prompt": [system, {"role": "user", "content": query["query"]}],
            "source": SOURCE,
            "level": level,
            "case_folder": str(folder / f"case_{query['id']}"),
        }
        for query in queries
    ]
    _refuse_missing(folder, [Path(row["case_folder"]) for row in rows])
    return rows


def _refuse_missing(cases: Path, folders: list[Path]) -> None:
    missing = [
        str((folder / name).relative_to(cases))
        for folder in folders
        for name in (PRODUCTS, ANSWERS)
        if not (folder / name).is_file()
    ]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise InputError(
            f"{cases}: {', '.join(missing[:_SHOWN])}{more} are not there; unpack the level's "
            f"archive of {_DATA_SET} (database_level1.tar.gz and so on) and name the folder"
        )
