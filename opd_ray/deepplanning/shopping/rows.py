"""The prompts of the shopping tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.shopping.case import ANSWERS, PRODUCTS
from opd_ray.deepplanning.shopping.checkout import LEVELS, read_queries, read_system_prompt
from opd_ray.errors import InputError

SOURCE = "deepplanning_shopping"
_SHOWN = 5
_DATA_SET = "https://huggingface.co/datasets/Qwen/DeepPlanning"


def shopping_rows(
    checkout: str | Path, database_dir: str | Path | None, level: int
) -> list[dict[str, Any]]:
    """The tasks of a level as prompts for evaluation, in the clone's order.

    Args:
        checkout: the user's clone of Qwen-Agent.
        database_dir: where ``case_1``, ``case_2``, ... or ``database_level1``, ... lie; None: in
            the clone, where the benchmark's archives unpack to.
        level: 1 to 3.

    Returns:
        Rows with ``id``, ``prompt`` (chat messages), ``source``, ``level``, ``case_folder`` (an
        absolute path).

    Raises:
        InputError: not a whole clone, no such level, or cases without their files.
    """
    if level not in LEVELS:
        raise InputError(f"DeepPlanning's shopping tasks have levels 1 to 3, not {level!r}")
    checkout = Path(checkout).expanduser()
    queries = read_queries(checkout, level)
    system = {"role": "system", "content": read_system_prompt(checkout, level)}
    cases = _cases(checkout, database_dir, level)
    rows: list[dict[str, Any]] = [
        {
            "id": f"shopping{level}_{query['id']}",
            "prompt": [system, {"role": "user", "content": query["query"]}],
            "source": SOURCE,
            "level": level,
            "case_folder": str(cases / f"case_{query['id']}"),
        }
        for query in queries
    ]
    _refuse_missing(cases, [Path(row["case_folder"]) for row in rows])
    return rows


def _cases(checkout: Path, database_dir: str | Path | None, level: int) -> Path:
    here = Checkout.at(checkout).shopping
    given = here if database_dir is None else Path(database_dir).expanduser()
    within = given / f"database_level{level}"
    return (within if within.is_dir() else given).resolve()


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
