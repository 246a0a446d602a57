"""What environments cannot have: keys, paths, arguments and parsers; sources that are not there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from opd_ray.config.environment import EnvironmentSettings
from opd_ray.config.keys import layer_problems, shown
from opd_ray.config.ranges import range_problems
from opd_ray.config.schema import Config
from opd_ray.environments.by_source import RunEnvironment
from opd_ray.environments.load import environment_factory
from opd_ray.environments.parsers.registry import get_parser
from opd_ray.errors import ConfigError, OpdError

# What a rollout actor has once, for all of its environments.
_OF_ACTORS = ("call_timeout_s", "concurrent_rollouts", "threads")


def section_problems(config: Config) -> list[str]:
    """Keys of ``environments`` that there are not; nothing else can be checked then."""
    return [
        text
        for source, own in config.environments.items()
        for text in [
            *layer_problems(EnvironmentSettings, own, f"environments.{source}"),
            *_parted_sources(source, own),
        ]
    ]


def _parted_sources(source: str, own: Mapping[str, Any]) -> Iterator[str]:
    """Names of files, which a dotted key on the command line takes apart."""
    keys = {field.name for field in fields(EnvironmentSettings)}
    for name, value in own.items():
        if name not in keys and isinstance(value, Mapping):
            yield (
                f"environments.{source}.{name}: a dot parts keys; for the source {source}.{name} "
                f"write environments='{{{source}.{name}: {{KEY: VALUE}}}}'"
            )


def environment_problems(config: Config) -> Iterator[str]:
    """Every other problem of ``environment`` and ``environments``.

    The user's classes are looked up and held against their arguments; nothing of them is called.
    """
    told = None
    for source in (None, *config.environments):
        key = "environment" if source is None else f"environments.{source}"
        settings = config.environment if source is None else config.environment_of(source)
        own = None if source is None else config.environments[source]
        yield from range_problems(key, settings, told)
        told = config.environment
        for name in _OF_ACTORS:
            if own is not None and name in own:
                yield (
                    f"{key}.{name} = {shown(own[name])}: a rollout actor has one number for all of "
                    f"its environments; set environment.{name}"
                )
        if settings.path is None:
            if settings.arguments:
                yield (
                    f"{key}.arguments = {settings.arguments} with {key}.path = null: there is no "
                    "class that takes them; name it, or take them out"
                )
            continue
        # What a source has of the section environment is told there.
        if own is None or {"path", "arguments"} & own.keys():
            yield from _refusal(
                environment_factory, settings.path, settings.arguments, f"{key}.path"
            )
        if own is None or "parser" in own:
            yield from _refusal(get_parser, settings.parser, f"{key}.parser")


def making_problems(config: Config) -> list[str]:
    """Why an environment cannot be made here: a file that is not there, an error in its class.

    One is made of every section, and asked for its tools.
    """
    settings = config.environment_set
    sections = {"environment": settings.default}
    sections |= {f"environments.{source}": own for source, own in settings.by_source.items()}
    problems: dict[tuple[str, str], str] = {}
    for key, section in sections.items():
        # Sections differ in limits too, with which there is no other environment to be made.
        made = (str(section.path), repr(section.arguments))
        if section.path is None or made in problems:
            continue
        try:
            _ = RunEnvironment(section, key).tools
        except OpdError as error:
            problems[made] = str(error)
    return list(problems.values())


def without_prompts(config: Config, sources: Collection[str]) -> list[str]:
    """Environments that no prompt acts in: a misspelt source, whose prompts go elsewhere.

    Args:
        config: of the run.
        sources: of all prompts to train and to be measured on.
    """
    there = ", ".join(map(repr, sources))
    return [
        f"environments.{source}: no prompt of data or of a task has this source; there is "
        f"{there}: correct the name, or take the environment out"
        for source in config.environments
        if source not in sources
    ]


def _refusal(look_up: Callable[..., Any], *args: Any) -> Iterator[str]:
    try:
        look_up(*args)
    except ConfigError as error:
        yield str(error)
