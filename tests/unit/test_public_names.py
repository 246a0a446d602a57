"""``import opd_ray``: cheap, and every public name where type checkers are told it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import opd_ray

STUB = Path(opd_ray.__file__).with_suffix(".pyi")
# What each name may bring along: the numeric core comes without engines.
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "omegaconf", "numpy")
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "TipFilter": {"numpy"},
    "load_config": {"numpy", "omegaconf"},
    "RunResult": {"numpy", "omegaconf"},
    "linear_divergence": {"numpy", "omegaconf", "torch"},
    "train": {"numpy", "omegaconf", "torch"},
}


def test_type_checkers_are_told_of_every_public_name_and_of_no_other() -> None:
    tree = ast.parse(STUB.read_text())
    imported = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported.pop("errors") == "opd_ray"
    assert imported == opd_ray._PUBLIC
    assert {*opd_ray.__all__} == {*imported, "errors", "__version__"}
    assert STUB.with_name("py.typed").is_file()


@pytest.mark.parametrize("name", sorted(opd_ray.__all__))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(opd_ray, name)
    assert name in dir(opd_ray)
    if name != "__version__":
        assert value.__doc__


def test_another_name_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'opd_ray' has no attribute 'trian'"):
        opd_ray.trian  # type: ignore[attr-defined]  # noqa: B018


def test_a_name_brings_along_no_more_than_it_needs() -> None:
    program = f"""
import sys
import opd_ray
def loaded():
    return {{*{HEAVY!r}}} & {{*sys.modules}}
assert not loaded(), loaded()
for name, allowed in {ALLOWED!r}.items():
    getattr(opd_ray, name)
    assert loaded() <= allowed, (name, loaded())
"""
    # In the order of what each may bring, as modules stay.
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
