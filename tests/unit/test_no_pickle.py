"""Nothing that is read can run code: no pickle of a checkpoint, a cache or the network.

Ray's own messages are the exception; docs/security.md says who may send them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# A call, and what makes it safe.
SAFE = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "pandas.read_pickle": None,
    "eval": None,
}


def unsafe(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of every import and call in ``source`` that may run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in SAFE:
            if (wanted := SAFE[called]) is None or not any(
                one.arg == wanted[0] and getattr(one.value, "value", None) is wanted[1]
                for one in node.keywords
            ):
                yield node.lineno, called
            continue
        else:
            continue
        for name in names:
            if name.partition(".")[0] in MODULES:
                yield node.lineno, name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from cloudpickle import loads", ["cloudpickle"]),
        ("def f():\n    import dill as d", ["dill"]),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("np.load(path, allow_pickle=False)", []),
        ("yaml.load(text, loader)", ["yaml.load"]),
        ("model.eval()", []),
    ],
)
def test_what_may_run_code_is_found(source: str, found: list[str]) -> None:
    assert [name for _, name in unsafe(source)] == found


def test_nothing_that_is_read_can_run_code() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for package in ("opd_ray", "actors")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in unsafe(path.read_text(encoding="utf-8"))
    ]
    assert found == []
