"""Words of a file or of the command line as values of their keys' types.

YAML has ideas of its own about words that stand there without quotes: ``007`` is 7, ``12:30`` is
750, ``yes`` is true, ``010`` is 8, and `` #`` begins a comment. A key knows what it holds, so it
says what the words mean: text keeps them, numbers are read as people write them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, get_origin

import yaml
from omegaconf._yaml import get_yaml_loader

from opd_ray.borders import border
from opd_ray.config.keys import hint_below, without_none
from opd_ray.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_TEXT, _NULL, _MERGE = f"{_TAG}str", f"{_TAG}null", f"{_TAG}merge"
# What YAML makes of words without quotes; null, text and bytes are what they say they are.
_GUESSES = {f"{_TAG}{name}" for name in ("int", "float", "bool", "timestamp", "value", "merge")}
# Hours and minutes, and a leading zero: numbers to the base 60 and 8, which nobody means.
_ODD_NUMBER = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?|[-+]?0\d[\d_]*")
_INFINITIES = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
# Far above what any section needs. YAML's C library ends the process at a hundred thousand levels,
# and what reads the values later on gives up at a thousand.
_MOST_NESTED = 50
_NESTING = ("[", "{", "- ", "? ")
REFERENCE = "${"  # begins a reference to another key's value


def read_document(text: str, hint: Any, place: str) -> Any:
    """A YAML document as plain Python, its words read as ``hint``, a type of the schema, says.

    Raises:
        ConfigError: no YAML, or words that YAML would change where nothing says what they are.
    """
    loader = get_yaml_loader()(text)
    try:
        tabs = "indent with spaces, not with tabs" if "\n\t" in text else ""
        remedy = tabs or "correct it, or quote what is meant as text"
        with border(place, remedy, ConfigError):
            _refuse_depth(text, place)
            node = loader.get_single_node()
        if node is None:
            return None
        odd = list(_keep_words(node, hint, ()))
        if odd:
            raise ConfigError("\n".join(f"{place}: {text}" for text in odd))
        with border(place, "correct it", ConfigError):
            value = loader.construct_document(node)
    finally:
        loader.dispose()
    return _converted(value, hint)


def from_command_line(text: str, hint: Any, place: str) -> Any:
    """What stands behind ``key=`` for a key of type ``hint``.

    Text is taken character by character. Where a key may be null, nothing and ``null`` mean that,
    and ``'null'`` the word. Lists, mappings and what has no type are YAML.

    Raises:
        ConfigError: no YAML where that is expected, or words that YAML would change.
    """
    optional, hint = without_none(hint) is not hint, without_none(hint)
    if optional and text.strip() in ("", "null"):
        return None
    if hint is str:
        quoted = optional and text in ("'null'", '"null"', "''", '""')
        return text[1:-1] if quoted else text
    if _is_scalar(hint):
        return _scalar(text.strip(), hint)
    value = read_document(text, hint, place)
    if _cut_short(text):
        raise ConfigError(f"{place}: ' #' begins a comment in YAML: put the text into quotes")
    return value


def _refuse_depth(text: str, place: str) -> None:
    """Refuse a document that is nested without end, before it is made into values.

    Raises:
        ConfigError: it is; names the line.
    """
    if sum(text.count(begins) for begins in _NESTING) < _MOST_NESTED:
        return
    loader, depth = get_yaml_loader()(text), 0
    try:
        while loader.check_event():
            event = loader.get_event()
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_NESTED:
                raise ConfigError(
                    f"{place}: line {event.start_mark.line + 1}: nested more than {_MOST_NESTED} "
                    "levels deep"
                )
    finally:
        loader.dispose()


def _keep_words(node: yaml.Node, hint: Any, above: tuple[yaml.Node, ...]) -> Iterator[str]:
    """Mark the words below ``node`` as text where their key has a type; yields what is unclear."""
    if node in above:  # an alias inside of what it stands for: the loader refuses it
        return
    above, hint = (*above, node), without_none(hint)
    if isinstance(node, yaml.ScalarNode):
        if _is_scalar(hint):
            if node.tag in _GUESSES:
                node.tag = _TEXT
        elif node.tag in _GUESSES and _ODD_NUMBER.fullmatch(node.value):
            where = f"line {node.start_mark.line + 1}: {node.value}"
            yield f"{where}: YAML reads that as another number; quote it, or write it in full"
    elif isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            yield from _keep_words(child, hint_below(hint, number), above)
    else:
        for key, value in node.value:
            if key.tag == _MERGE:
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for one in merged:
                    yield from _keep_words(one, hint, above)
                continue
            inner: Any = Any
            if _has_keys(hint):
                if isinstance(key, yaml.ScalarNode) and key.tag in {*_GUESSES, _NULL}:
                    key.tag = _TEXT
                inner = hint_below(hint, key.value)
            yield from _keep_words(value, inner, above)


def _converted(value: Any, hint: Any) -> Any:
    """Words below ``value`` as the numbers that their keys hold."""
    hint = without_none(hint)
    if isinstance(value, str):
        return _scalar(value, hint)
    if isinstance(value, list) and get_origin(hint) is list:
        return [_converted(one, hint_below(hint, number)) for number, one in enumerate(value)]
    if isinstance(value, dict) and _has_keys(hint):
        return {key: _converted(one, hint_below(hint, key)) for key, one in value.items()}
    return value


def _scalar(text: str, hint: Any) -> Any:
    """``text`` as a number where ``hint`` is one; words that are none stay, and are refused later.

    A whole number may be written with an exponent, and leading zeros count for nothing.
    """
    if hint not in (int, float) or REFERENCE in text:
        return text
    try:
        if hint is int:
            return int(text, 0 if text.lower().lstrip("+-").startswith("0x") else 10)
    except ValueError:
        pass  # perhaps with an exponent
    try:
        number = float(_INFINITIES.get(text.lower(), text))
    except ValueError:
        return text
    return int(number) if hint is int and math.isfinite(number) and number % 1 == 0 else number


def _cut_short(text: str) -> bool:
    """Whether YAML takes part of one line of words for a comment."""
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        return node is not None and bool(text[node.end_mark.index :].strip())
    finally:
        loader.dispose()


def _is_scalar(hint: Any) -> bool:
    return hint in (str, int, float, bool) or (isinstance(hint, type) and issubclass(hint, Enum))


def _has_keys(hint: Any) -> bool:
    return is_dataclass(hint) or get_origin(hint) is dict
