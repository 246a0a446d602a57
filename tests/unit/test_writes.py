"""Every call that changes a file stands where a full or failing disk becomes a message of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A block of one of these turns what is raised into an error that names the file and a remedy.
BORDERS = {"writing", "border", "making_room"}
# Methods and functions that change what is on a disk, whoever's they are.
CHANGING = {
    *("write_text", "write_bytes", "mkdir", "makedirs", "rmtree", "copytree", "rename", "unlink"),
    *("savefig", "save_pretrained", "save_file", "symlink_to", "copymode", "touch", "mkstemp"),
    *("mkdtemp", "TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile"),
}
# Where what is raised is dealt with in another way, and how.
ELSEWHERE = {
    "opd_ray/whole_file.py": "what is written has a border; a draft is removed outside of it",
    "opd_ray/output/folder.py": "what cannot be made is said of the key that names the folder",
}


def unguarded(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of every call in ``source`` that changes a file outside of a border."""

    def visit(node: ast.AST, guarded: bool) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.With):
            for item in node.items:
                yield from visit(item.context_expr, guarded)
                guarded = guarded or named(item.context_expr) in BORDERS
            for child in node.body:
                yield from visit(child, guarded)
            return
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            guarded = False  # it runs where it is called
        if isinstance(node, ast.Call) and not guarded:
            name = named(node)
            silent = any(key.arg == "ignore_errors" for key in node.keywords)
            if (name in CHANGING and not silent) or (name == "open" and opens_to_write(node)):
                yield node.lineno, name
        for child in ast.iter_child_nodes(node):
            yield from visit(child, guarded)

    return visit(ast.parse(source), False)


def named(node: ast.AST) -> str:
    """``call`` of ``call(...)`` and of ``one.call(...)``."""
    called = node.func if isinstance(node, ast.Call) else node
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def opens_to_write(call: ast.Call) -> bool:
    modes = [one.value for one in call.args if isinstance(one, ast.Constant)]
    return any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.write_text('x')", [(1, "write_text")]),
        ("with writing(path):\n    path.write_text('x')", []),
        ("with border('a', 'b'), other():\n    shutil.rmtree(path)", []),
        ("with writing(path), path.open('w') as file:\n    pass", []),
        ("with path.open('w') as file, writing(path):\n    pass", [(1, "open")]),
        ("shutil.rmtree(path, ignore_errors=True)", []),
        ("with other():\n    open('a', 'w')", [(2, "open")]),
        ("with path.open('ab') as file:\n    pass", [(1, "open")]),
        ("path.open('rb'); open(path, encoding='utf-8')", []),
        ("with writing(path):\n    def later():\n        path.mkdir()", [(3, "mkdir")]),
    ],
)
def test_calls_outside_of_a_border_are_found(source: str, found: list[tuple[int, str]]) -> None:
    assert list(unguarded(source)) == found


def test_every_write_has_a_border() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for package in ("opd_ray", "actors")
        for path in sorted((ROOT / package).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in ELSEWHERE
        for line, name in unguarded(path.read_text(encoding="utf-8"))
    ]
    assert found == []
