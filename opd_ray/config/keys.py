"""Which keys a configuration has, what each may hold, and what a misspelt one was meant to be."""

from __future__ import annotations

import copy
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, reduce
from typing import Any, Union

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from opd_ray.config.marks import reading_hint

WRITE_REFERENCE = (
    r"${section.key} stands for another key's value; for these characters themselves write \${"
)


def editable(schema: type) -> DictConfig:
    """OmegaConf's form of a dataclass; frozen sections can be written to until they are made."""
    return copy.deepcopy(_made(schema))


def layer_problems(schema: type, values: Mapping[str, Any], source: str) -> list[str]:
    """Every unknown key and every value of the wrong type in ``values``, one message each.

    ``schema`` is the dataclass the values are for; ``source`` (a file, or "command line") opens
    each message.
    """
    return [f"{source}: {text}" for text in _section_problems(schema, schema, values, "")]


def override_problems(schema: type, key: str, value: Any, source: str) -> list[str]:
    """The same for one value at a dotted key such as ``eval.tasks[0].samples``."""
    found = _placed_problems(schema, schema, key_parts(key), value, "")
    return [f"{source}: {text}" for text in found]


def key_parts(key: str) -> list[str | int]:
    """``eval.tasks[0].samples`` as ["eval", "tasks", 0, "samples"]; ``tasks.0`` is the same."""
    parts = key.replace("[", ".").replace("]", "").split(".")
    return [int(part) if part.isdigit() else part for part in parts]


def reading_hints(schema: type) -> dict[str, Any]:
    """The type by which the words of every key of a section are read."""
    hints = _hints(schema)
    return {f.name: reading_hint(f.metadata, hints[f.name]) for f in fields(schema)}


def hint_at(schema: type, key: str) -> Any:
    """The type by which the words at a dotted key are read; ``Any`` where none is known."""
    return reduce(hint_below, key_parts(key), schema)


def hint_below(hint: Any, part: Any) -> Any:
    """The same for one key of a section or mapping, or one entry of a list, of type ``hint``."""
    hint = without_none(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return reading_hints(hint).get(str(part), Any)
    if typing.get_origin(hint) is dict:
        return typing.get_args(hint)[1]
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0]
    return Any


def all_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """The full keys of all single values, lists of sections included as ``tasks[].name``."""
    for name, hint in _hints(schema).items():
        inner, suffix = section_of(hint)
        if inner is None:
            yield prefix + name
        else:
            yield from all_keys(inner, f"{prefix}{name}{suffix}.")


def _placed_problems(
    root: type, hint: Any, parts: list[str | int], value: Any, prefix: str
) -> Iterator[str]:
    """``value`` checked at ``parts`` below a place of type ``hint``; mappings are free inside."""
    hint = without_none(hint)
    key = _join(prefix, parts[0])
    if isinstance(hint, type) and is_dataclass(hint):
        name = str(parts[0])
        if name not in _hints(hint):
            yield _unknown(root, hint, prefix, name)
        elif len(parts) == 1:
            yield from _value_problems(root, hint, name, value, key)
        else:
            yield from _placed_problems(root, _hints(hint)[name], parts[1:], value, key)
    elif typing.get_origin(hint) is list:
        entry = typing.get_args(hint)[0]
        if not isinstance(parts[0], int):
            yield f"{prefix} is a list: write {prefix}[0] for its first entry"
        elif len(parts) > 1:
            yield from _placed_problems(root, entry, parts[1:], value, key)
        elif isinstance(entry, type) and is_dataclass(entry):
            yield from _entry_problems(root, entry, value, key)
    elif typing.get_origin(hint) is not dict:
        yield f"unknown key {key}: {prefix} is a single value"


def _section_problems(
    root: type, schema: type, values: Mapping[str, Any], prefix: str
) -> Iterator[str]:
    for name, value in values.items():
        key = _join(prefix, name)
        if name not in _hints(schema):
            yield _unknown(root, schema, prefix, str(name))
        else:
            yield from _value_problems(root, schema, str(name), value, key)


def _value_problems(root: type, schema: type, name: str, value: Any, key: str) -> Iterator[str]:
    hint = _hints(schema)[name]
    inner, suffix = section_of(hint)
    if inner is None or (value is None and without_none(hint) is not hint):
        yield from _leaf_problems(schema, name, value, key)
    elif suffix:
        if not isinstance(value, list):
            yield f"{key} = {shown(value)}: expected a list of sections"
            return
        for number, entry in enumerate(value):
            yield from _entry_problems(root, inner, entry, f"{key}[{number}]")
    else:
        yield from _entry_problems(root, inner, value, key)


def _entry_problems(root: type, schema: type, value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _section_problems(root, schema, value, key)
    else:
        keys = ", ".join(_hints(schema))
        yield f"{key} = {shown(value)}: expected a section with keys {keys}"


def _leaf_problems(schema: type, name: str, value: Any, key: str) -> Iterator[str]:
    try:
        OmegaConf.update(_scratch(schema), name, value)
    except GrammarParseError:
        yield f"{key} = {shown(value)}: {WRITE_REFERENCE}"
    except (OmegaConfBaseException, OverflowError, TypeError, ValueError):
        hint = _hints(schema)[name]
        near = difflib.get_close_matches(str(value).lower(), _choices(hint), n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        yield f"{key} = {shown(value)}: expected {described(hint)}{meant}"


def _unknown(root: type, owner: type, prefix: str, name: str) -> str:
    key = _join(prefix, name)
    if why := getattr(owner, "refused_keys", {}).get(name):
        return f"unknown key {key}: {why}"
    if "." in name and key in set(all_keys(root)):
        return f"{key}: dotted keys are for the command line, in a file nest it by indentation"
    shortened = [full for full in _hints(owner) if name == "".join(w[0] for w in full.split("_"))]
    begun = [full for full in _hints(owner) if full.startswith(f"{name}_")]
    siblings = shortened or difflib.get_close_matches(name, _hints(owner), n=1) or begun
    if siblings:
        return f"unknown key {key}: did you mean {_join(prefix, siblings[0])}?"
    leaf = name.rsplit(".", 1)[-1]
    sections = [full for full in _sections(root) if full.endswith(f".{leaf}")]
    by_leaf = {full.rsplit(".", 1)[-1]: full for full in reversed(list(all_keys(root)))}
    if sections and leaf in by_leaf:
        return f"unknown key {key}: did you mean {sections[0]} or {by_leaf[leaf]}?"
    # A key of another section must be nearer than one of this section to be meant.
    elsewhere = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)
    if elsewhere:
        return f"unknown key {key}: did you mean {by_leaf[elsewhere[0]]}?"
    where = f"the keys of {prefix}" if prefix else "the top-level keys"
    return f"unknown key {key}: {where} are {', '.join(_hints(owner))}"


def _set_writable(section: DictConfig) -> None:
    OmegaConf.set_readonly(section, False)
    for name in section:
        if not OmegaConf.is_missing(section, name) and OmegaConf.is_dict(section[name]):
            _set_writable(section[name])


def _sections(schema: type, prefix: str = "") -> Iterator[str]:
    """The full keys of all sections that are no lists."""
    for name, hint in _hints(schema).items():
        inner, suffix = section_of(hint)
        if inner is not None and not suffix:
            yield prefix + name
            yield from _sections(inner, f"{prefix}{name}.")


@cache
def _made(schema: type) -> DictConfig:
    """A section as it begins; to make one takes OmegaConf six times as long as to copy it."""
    section = OmegaConf.structured(schema)
    _set_writable(section)
    return section


@cache
def _scratch(schema: type) -> DictConfig:
    """A section to try values on; copying one takes milliseconds, trying a value microseconds."""
    return editable(schema)


@cache
def _hints(schema: type) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in fields(schema)}


def section_of(hint: Any) -> tuple[Any, str]:
    """(dataclass, "") for a section, (dataclass, "[]") for a list of sections, else (None, "")."""
    hint = without_none(hint)
    if is_dataclass(hint):
        return hint, ""
    if typing.get_origin(hint) is list and is_dataclass(typing.get_args(hint)[0]):
        return typing.get_args(hint)[0], "[]"
    return None, ""


def without_none(hint: Any) -> Any:
    """A type without the null that it allows."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        kept = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
        if len(kept) == 1:
            return kept[0]
    return hint


def _join(prefix: str, part: str | int) -> str:
    if isinstance(part, int):
        return f"{prefix}[{part}]"
    return f"{prefix}.{part}" if prefix else str(part)


def shown(value: Any) -> str:
    """A value as a user would write it in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value.value if isinstance(value, Enum) else value)


def described(hint: Any) -> str:
    """A type in words: "an integer", "one of topk, hidden, sampled or null"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(described(arg) for arg in args)
    if origin is list:
        return f"a list of {described(args[0])} entries"
    if origin is dict:
        return "a mapping"
    if choices := _choices(hint):
        return f"one of {', '.join(choices)}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "null" if hint is types.NoneType else str(hint))


def _choices(hint: Any) -> list[str]:
    """The values of a key that has a fixed set of them, else none."""
    hint = without_none(hint)
    is_enum = isinstance(hint, type) and issubclass(hint, Enum)
    return [member.name for member in hint] if is_enum else []
