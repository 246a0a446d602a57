"""Where prepared sets lie: one JSONL file a set, in one folder."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from opd_ray.data.benchmarks import BENCHMARKS
from opd_ray.data.prompt import DataError, MissingData

FOLDER_VARIABLE = "OPD_RAY_DATA"
DEFAULT_FOLDER = "data"


def prepared_folder() -> Path:
    """The folder that OPD_RAY_DATA names, or `data` in the current one."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser()


def prepared_file(name: str, section: str) -> Path:
    """The file of a prepared set: `math500` in the usual folder, or `some/folder/math500`.

    Raises `MissingData` that says how to make it when it is not there, `DataError` when there is
    no set of that name.
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
    near = difflib.get_close_matches(path.stem, BENCHMARKS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(BENCHMARKS))}"
    raise DataError(f"{problem} (no set of that name can be prepared: {hint}; {where})")
