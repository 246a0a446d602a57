"""docs/architecture.md names every file there is, in its folder, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("opd_ray", "actors")


def listed() -> list[str]:
    """The files of the tree, whose indentation tells their folder."""
    section = PAGE.split("## The folders, from top to bottom")[1]
    tree = section.split("```")[1]
    files, folders = [], {}
    for line in tree.strip().splitlines():
        name = line.split()[0] if line.strip() else ""
        depth = (len(line) - len(line.lstrip())) // 2
        if name.endswith("/"):
            folders = {d: f for d, f in folders.items() if d < depth} | {depth: name}
        elif name:
            within = [folders[d] for d in sorted(folders) if d < depth]
            files.append("".join(within) + name)
    return files


def there() -> list[str]:
    """The modules of both packages; a rule's file is its own description."""
    found = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    paths = [path.relative_to(ROOT) for path in found if path.name != "__init__.py"]
    return [str(path) for path in paths if path.parent.name != "rules"]


def test_the_tree_lists_every_file_once() -> None:
    assert sorted(listed()) == sorted(there())


def test_every_path_in_the_text_is_there() -> None:
    named = re.findall(r"`((?:opd_ray|actors|examples|launch|docs)/[\w./]*)`", PAGE)
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []
