"""Paths in a configuration and on the command line: ``~`` is the home folder, wherever one stands.

Relative paths start at the current folder. Environment variables are written ``${oc.env:NAME}``;
``$NAME``, which a shell would have replaced, is refused rather than taken for a folder's name.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from opd_ray.borders import border
from opd_ray.config.keys import reading_hints
from opd_ray.config.marks import is_path
from opd_ray.errors import ConfigError

_VARIABLE = re.compile(r"(?:^|/)\$([A-Za-z_]\w*)")


def expanded(text: str, name: str) -> str:
    """A path with the home folder in place of a leading ``~``; ``name`` is its key or option.

    Raises:
        ConfigError: the home folder of nobody, or an environment variable that nobody replaced.
    """
    if variable := _VARIABLE.search(text):
        raise ConfigError(
            f"{name} = {text!r}: ${variable[1]} is not replaced here; in a configuration write "
            f"${{oc.env:{variable[1]}}}, or let the shell replace it"
        )
    if not text.startswith("~"):
        return text
    with border(f"{name} = {text!r}", "give the folder in full", ConfigError):
        return str(Path(text).expanduser())


def with_home(settings: Any, place: str = "") -> Any:
    """A section with every path in it expanded, at whatever depth; ``place`` is its key.

    Raises:
        ConfigError: as :func:`expanded`, naming the key; or none where there has to be one.
    """
    changed: dict[str, Any] = {}
    hints = reading_hints(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        key = f"{place}.{field.name}" if place else field.name
        if is_path(field.metadata):
            if value == "" and field.default:
                raise ConfigError(f"{key} is empty: give a path")
            made = expanded(value, key) if isinstance(value, str) else value
        else:
            made = _inside(value, hints[field.name], key)
        if made != value:
            changed[field.name] = made
    return replace(settings, **changed) if changed else settings


def _inside(value: Any, hint: Any, key: str) -> Any:
    if is_dataclass(value):
        return with_home(value, key)
    if isinstance(value, list):
        return [_inside(one, None, f"{key}[{number}]") for number, one in enumerate(value)]
    if isinstance(value, dict) and get_origin(hint) is dict:
        return {
            name: _inside(one, get_args(hint)[1], f"{key}.{name}") for name, one in value.items()
        }
    if isinstance(value, dict) and isinstance(hint, type) and is_dataclass(hint):
        paths = {field.name for field in fields(hint) if is_path(field.metadata)}
        return {
            name: expanded(one, f"{key}.{name}") if name in paths and isinstance(one, str) else one
            for name, one in value.items()
        }
    return value
