"""Where tests find rows of the real data sets: a few beside this file, whole sets if they are here.

Whole sets lie in the folder that OPD_RAY_TEST_DATA names, or in ../shared/data beside the checkout.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

EXCERPTS = Path(__file__).with_name("excerpts")
WHOLE_SETS = Path(
    os.environ.get("OPD_RAY_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data"
)

needs_whole_sets = pytest.mark.skipif(
    not WHOLE_SETS.is_dir(),
    reason="reads whole data sets, which are not in the repository: set OPD_RAY_TEST_DATA to a "
    "folder with math500, aime_2024, aime_2025, amc23, gsm8k_train and deepmath_5k, each .jsonl",
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): a problem may hold one of Unicode's other line separators.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
