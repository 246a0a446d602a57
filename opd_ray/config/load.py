"""From a config's name and command-line overrides to a typed Config, and back to YAML.

Files are laid over the defaults of schema.py in the order of ``inherit``, overrides come last; a
list replaces the list it inherits. Paths are relative to the current directory, ``~`` is the home
folder. Besides OmegaConf's own ``${section.key}`` and ``${oc.env:NAME}``, ``${opd:demo_pair}`` is
the folder that holds the demo's ``teacher`` and ``student``, ``${opd:demo_tools_pair}`` that of the
demo with tools, ``${opd:smollm2}`` that of the pair that ``opd-ray fetch-smollm2`` makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from importlib import resources
from os import PathLike, fspath
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from opd_ray.borders import border
from opd_ray.config.files import Layer, layers
from opd_ray.config.keys import (
    WRITE_REFERENCE,
    editable,
    hint_at,
    key_parts,
    layer_problems,
    override_problems,
)
from opd_ray.config.paths import with_home
from opd_ray.config.schema import Config
from opd_ray.config.words import from_command_line
from opd_ray.errors import ConfigError

COMMAND_LINE = "command line"
OVERRIDES = "overrides"
# Of variables that hold what nobody else may read: OPENAI_API_KEY, HF_TOKEN; not TOKENIZER.
_KEY_VARIABLE = re.compile(
    r"(?:^|_)(?:key|apikey|token|secret|password|passwd|credentials?)(?:_|$)", re.IGNORECASE
)
_BEFORE_REFERENCE = re.compile(r"(\\*)\$\{")


def load_config(
    name_or_path: str | PathLike[str], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """The configuration ``name_or_path`` with single values replaced.

    Args:
        name_or_path: the name of a packaged config ("demo"), or the path of a file ending in .yaml.
        overrides: texts as on the command line (``["run.steps=20"]``), or Python values by dotted
            key (``{"run.steps": 20, "eval.tasks[0].samples": 4, "tip": {"rule": "random"}}``).

    Raises:
        ConfigError: a missing file, bad YAML, an unknown key (with the nearest valid one), a value
            of the wrong type, a required key without a value; names file, key and value.
    """
    source = fspath(name_or_path)
    return _laid_over(layers(source), overrides, source)


def config_from(values: dict[str, Any], overrides: Sequence[str], source: str) -> Config:
    """The same from keys and values in place of a file; ``source`` names them in messages."""
    return _laid_over([Layer(source, values)], overrides, source)


def _laid_over(
    files: Sequence[Layer], overrides: Sequence[str] | Mapping[str, Any], source: str
) -> Config:
    merged = editable(Config)
    problems: list[str] = []
    for layer in files:
        wrong = layer_problems(Config, layer.values, layer.source)
        problems += wrong
        if not wrong:
            merged.merge_with(layer.values)
    for override in _each(overrides):
        try:
            if isinstance(override, str):
                _apply(merged, override)
            else:
                key, value = override
                _set(merged, key, _as_in_file(value), f"{key} = {value!r}", OVERRIDES)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return _typed(merged, source)


def _each(overrides: Sequence[str] | Mapping[str, Any]) -> Iterator[str | tuple[str, Any]]:
    """Texts ``key=value``, or keys with Python values.

    Raises:
        ConfigError: one text alone, of which each letter would be an override.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"{OVERRIDES}: give a list of texts or a mapping, not {overrides!r}")
    if isinstance(overrides, Mapping):
        yield from ((str(key), value) for key, value in overrides.items())
    else:
        yield from overrides


def to_yaml(config: Config) -> str:
    """All keys and values as YAML; ``load_config`` of that text gives an equal Config."""
    return OmegaConf.to_yaml(OmegaConf.create(to_values(config)))


def to_values(config: Config) -> dict[str, Any]:
    """All keys and values as nested plain ones, as a file has them."""
    values: dict[str, Any] = _plain(asdict(config))
    return values


def _plain(value: Any) -> Any:
    """Nested values as a file has them: choices by name, no text that would be a reference."""

    def escaped(text: str) -> str:
        return _BEFORE_REFERENCE.sub(r"\1\1\\${", text)

    return _as_in_file(value, escaped)


def _as_in_file(value: Any, write: Callable[[str], str] = str) -> Any:
    """The same, with every text as ``write`` has it; without it, references stay references."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, PathLike):
        return write(fspath(value))
    if isinstance(value, str):
        return write(value)
    if isinstance(value, Mapping):
        return {key: _as_in_file(inner, write) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_in_file(inner, write) for inner in value]
    return value


def _apply(merged: Any, override: str) -> None:
    """Set one ``key=value`` in ``merged``.

    Raises:
        ConfigError: every problem that prevents it, one a line.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{COMMAND_LINE}: {override!r}: expected key=value, e.g. trainer.ranks=2")
    place = f"{COMMAND_LINE}: {key} = {text!r}"
    _set(merged, key, from_command_line(text, hint_at(Config, key), place), place, COMMAND_LINE)


def _set(merged: Any, key: str, value: Any, place: str, source: str) -> None:
    """Set ``key`` in ``merged``; ``place`` and ``source`` name it in messages.

    Raises:
        ConfigError: every problem that prevents it, one a line.
    """
    problems = override_problems(Config, key, value, source)
    parts = key_parts(key)
    for depth, part in enumerate(parts):
        if isinstance(part, int):
            above = ".".join(map(str, parts[:depth]))
            entries: Any = OmegaConf.select(merged, above)
            if OmegaConf.is_list(entries) and part >= len(entries):
                problems.append(
                    f"{source}: {key}: {above} has {len(entries)} entries, counted from 0"
                )
    if problems:
        raise ConfigError("\n".join(problems))
    with border(place, "give the whole mapping or list, as key='{...}'", ConfigError):
        OmegaConf.update(merged, key, value, merge=True)


def _typed(merged: Any, source: str) -> Config:
    with border(source, WRITE_REFERENCE, ConfigError):
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(
                f"{source}: no value for {', '.join(missing)}: set it in the file, "
                f"or on the command line as {missing[0]}=VALUE"
            )
        config = _made(merged, source)
    assert isinstance(config, Config)
    return with_home(config)


def _made(merged: Any, source: str) -> Any:
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException:  # some of which are ValueErrors too
        raise
    except ValueError as error:  # a section that checks itself, such as tip
        raise ConfigError(f"{source}: {error}") from error


def _pair(what: str) -> str:
    if what in ("demo_pair", "demo_tools_pair"):
        return str(resources.files("opd_ray.models.pairs") / what)
    if what == "smollm2":
        from opd_ray.models.pairs import smollm2

        return str(smollm2.pair_folder())
    raise ConfigError(f"${{opd:{what}}}: only demo_pair, demo_tools_pair and smollm2 are known")


def _variable(name: str, *default: str | None) -> str | None:
    """What ``${oc.env:NAME}`` and ``${oc.env:NAME,default}`` stand for."""
    if _KEY_VARIABLE.search(name):
        raise ConfigError(
            f"${{oc.env:{name}}}: by its name a key, and a run writes all values into its folder; "
            "give the variable's name to what needs it (teacher.api_key_env, or an argument of an "
            "environment of your own, which reads the variable itself)"
        )
    value: str | None = oc.env(name, *default)
    return value


OmegaConf.register_resolver("opd", _pair, replace=True)
OmegaConf.register_resolver("oc.env", _variable, replace=True)
