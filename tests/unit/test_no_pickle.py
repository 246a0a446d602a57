"""Nothing in the library reads or writes pickles of its own: whoever can write one runs code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import actors
import opd_ray

# Modules that run what they read.
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SOURCES = [
    path for package in (opd_ray, actors) for path in Path(package.__path__[0]).rglob("*.py")
]


def pickles(source: str) -> Iterator[str]:
    """Every place of a file that reads or writes a pickle."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [module or "", *(alias.name for alias in node.names)]
            if any(name.split(".")[0] in MODULES for name in names):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            allowed = {key.arg: ast.unparse(key.value) for key in node.keywords}
            if (
                called in ("torch.load", "torch.save", "pd.read_pickle", "np.memmap.dump")
                or (called in ("np.load", "numpy.load") and allowed.get("allow_pickle") != "False")
                or allowed.get("allow_pickle") == "True"
                or allowed.get("weights_only") == "False"
                or called.endswith((".load_checkpoint", ".save_checkpoint"))
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import os, joblib.memory",
        "from cloudpickle import dumps",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "read(path, weights_only=False)",
        "engine.load_checkpoint(folder)",
    ],
)
def test_a_pickle_is_found(line: str) -> None:
    assert len(list(pickles(f"x = 1\n{line}\n"))) == 1


def test_there_is_none() -> None:
    assert len(SOURCES) > 200
    found = {
        str(path): there
        for path in SOURCES
        if (there := list(pickles(path.read_text(encoding="utf-8"))))
    }
    assert found == {}
