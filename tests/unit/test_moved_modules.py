"""Modules that have moved: importing the old name says the new one."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import opd_ray


def old_import(statement: str) -> str:
    """What Python says of an import."""
    with pytest.raises(ImportError) as raised:
        exec(statement, {})
    return f"{type(raised.value).__name__}: {raised.value}"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "from opd_ray.alignment import response_slice",
            "opd_ray.alignment has moved to opd_ray.batching.alignment",
        ),
        (
            "import opd_ray.model_facts",
            "opd_ray.model_facts has moved to opd_ray.models.tokenizer",
        ),
        ("from opd_ray import wire", "cannot import name 'wire'"),
        (
            "from opd_ray.wire import to_wire",
            "opd_ray.wire has moved to opd_ray.types, its functions are to_array and to_tensor",
        ),
        ("import opd_ray.demo.recipe", "opd_ray.demo has moved to opd_ray.models.pairs.demo"),
    ],
)
def test_an_old_name_says_the_new_one(statement: str, said: str) -> None:
    assert said in old_import(statement)


def test_every_new_name_is_there_and_no_old_one() -> None:
    for old, new in opd_ray._MOVED.items():
        importlib.import_module(new.split(",")[0])
        with pytest.raises(ModuleNotFoundError, match="has moved to") as raised:
            importlib.import_module(old)
        assert raised.value.name == old


def test_an_unrelated_missing_module_still_says_what_python_says() -> None:
    assert old_import("import opd_ray.nothing") == (
        "ModuleNotFoundError: No module named 'opd_ray.nothing'"
    )
    assert old_import("import no_such_library") == (
        "ModuleNotFoundError: No module named 'no_such_library'"
    )


def test_running_the_old_submit_names_the_new_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "opd_ray.submit"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "opd_ray.submit has moved to opd_ray.cluster.submit" in done.stderr
    assert "Traceback" not in done.stderr
