"""``opd-ray prepare deepplanning --shopping``: the tasks of a level as prompts."""

from __future__ import annotations

import json
from pathlib import Path

from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.shopping.rows import shopping_rows
from opd_ray.errors import ConfigError
from opd_ray.whole_file import write_whole


def prepare_shopping(checkout: Checkout, cases: Path | None, out: Path, level: int) -> str:
    """Write ``out/deepplanning_shopping_LEVEL.jsonl``; returns what was written, in words.

    Args:
        cases: where the level's cases lie; None: in the clone.

    Raises:
        InputError: not a whole clone, or cases without their files.
        ConfigError: ``out`` cannot be written.
    """
    rows = [row | {"answer": None} for row in shopping_rows(checkout.folder, cases, level)]
    path = out / f"deepplanning_shopping_{level}.jsonl"
    try:
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
    return (
        f"DeepPlanning, shopping, level {level}: {len(rows)} tasks for evaluation in {path}\n"
        "licence of the benchmark: Apache-2.0"
    )
