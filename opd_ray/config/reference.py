"""Every key with its type, range, default and comment, as a page and as comments of a YAML file.

The comments are those above the fields of the dataclasses, read from their source.

    python -m opd_ray.config.reference > docs/config.md
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from opd_ray.config.keys import described, section_of, shown
from opd_ray.config.load import to_values
from opd_ray.config.ranges import range_words
from opd_ray.config.schema import Config
from opd_ray.on_resume import declared

_WIDTH = 100
_HEAD = """# Every key

```yaml
inherit: demo                     # a file says what differs from another, or from the defaults
run: {steps: 200}
trainer: {learning_rate: 1.0e-4}
```

```bash
opd-ray train --config demo tip.rho=0.3 --print-config   # every key, with these words
```

The last column says what another value means for a run that goes on: *free* (nothing), *told* (it
takes effect from the next step on, and a line says so), *same_prompts* (as told where the prompts
stay the same, else refused), *fixed* (refused: another run). More: [a run that goes
on](resume.md#a-run-that-goes-on). How files, words and paths are read:
[configuration](configuration.md). `???` is a key without which nothing runs.

This page is made from the code by `python -m opd_ray.config.reference`.
"""


@dataclass(frozen=True)
class Key:
    """One key of one section."""

    name: str
    kind: str  # its type and range, in words
    default: str  # as a file would have it
    comment: str  # one paragraph
    on_resume: str  # "" where all that is in it says it for itself


def sections() -> Iterator[tuple[str, list[Key]]]:
    """Every section by its dotted name ("" for the keys outside of any), in the order of a file."""
    return _sections(Config, "")


def _sections(schema: type, name: str) -> Iterator[tuple[str, list[Key]]]:
    comments, hints = field_comments(schema), typing.get_type_hints(schema)
    keys, below = [], []
    for one in fields(schema):
        inner, suffix = section_of(hints[one.name])
        place = f"{name}.{one.name}" if name else one.name
        if inner is not None:
            below.append((inner, place + suffix))
        if inner is None or comments[one.name]:
            keys.append(_key(one, hints[one.name], comments[one.name], in_itself=inner is not None))
    if keys:
        yield name, keys
    for inner, place in below:
        yield from _sections(inner, place)


def _key(one: Field[Any], hint: Any, comment: str, *, in_itself: bool) -> Key:
    kind = f"keys of their own, see {one.name} below" if in_itself else described(hint)
    words = [kind, *range_words(one.metadata)]
    resume = declared(one.metadata)
    return Key(
        one.name, ", ".join(words), "" if in_itself else _default(one), comment, resume or ""
    )


def _default(one: Field[Any]) -> str:
    value = one.default
    if value is MISSING:
        factory = one.default_factory
        assert factory is not MISSING
        value = factory()
    if isinstance(value, str) and not hasattr(value, "value"):
        return value or "''"
    return shown(value).strip("'")


@cache
def field_comments(schema: type) -> Mapping[str, str]:
    """The comment above every field of a dataclass, as one paragraph; "" where there is none."""
    source = textwrap.dedent(inspect.getsource(schema))
    lines = source.splitlines()
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno - 2
            comment: list[str] = []
            while above >= 0 and lines[above].strip().startswith("#"):
                comment.insert(0, lines[above].strip().removeprefix("#").strip())
                above -= 1
            found[node.target.id] = " ".join(comment)
    return found


def to_markdown() -> str:
    """The page."""
    parts = [_HEAD]
    for name, keys in sections():
        parts.append(f"\n## {name or 'Outside of any section'}\n")
        parts.append("| key | holds | default | what it does | when it changes |")
        parts.append("| --- | --- | --- | --- | --- |")
        for key in keys:
            cells = (
                f"`{key.name}`",
                key.kind,
                f"`{key.default}`" if key.default else "",
                key.comment,
                key.on_resume,
            )
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(parts) + "\n"


def commented_yaml(config: Config) -> str:
    """As ``to_yaml``, with the comment of every key above it."""
    return "\n".join(_commented(Config, to_values(config), 0)) + "\n"


def _commented(schema: type, values: Mapping[str, Any], depth: int) -> Iterator[str]:
    comments, hints = field_comments(schema), typing.get_type_hints(schema)
    pad = " " * depth
    for name, value in values.items():
        width = _WIDTH - depth - 2
        yield from (f"{pad}# {line}" for line in textwrap.wrap(comments[name], width))
        inner, suffix = section_of(hints[name])
        if inner is None or not value:
            leaf = OmegaConf.to_yaml(OmegaConf.create({name: value})).rstrip("\n")
            yield from (pad + line for line in leaf.split("\n"))
        elif not suffix:
            yield f"{pad}{name}:"
            yield from _commented(inner, value, depth + 2)
        else:
            yield f"{pad}{name}:"
            for entry in value:
                lines = list(_commented(inner, entry, depth + 2))
                # The dash stands before the entry's first key, below its comment.
                first = next(i for i, line in enumerate(lines) if line.lstrip()[0] != "#")
                lines[first] = f"{pad}- {lines[first].lstrip()}"
                yield from lines


if __name__ == "__main__":
    print(to_markdown(), end="")
