"""Environments by import path, as a configuration names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opd_ray.environments.environment import Environment
from opd_ray.environments.tool_class import ToolClass
from opd_ray.errors import ConfigError
from opd_ray.import_path import load_object

EnvironmentFactory = Callable[[], Environment]


def environment_factory(path: str, arguments: Mapping[str, Any], key: str) -> EnvironmentFactory:
    """Makes one environment a rollout of the class or function at ``path``.

    What it makes is an environment as it is, or an object whose public methods become the tools.

    Args:
        path: "package.module:object".
        arguments: of the class or function.
        key: the configuration key that holds the path, for messages.

    Raises:
        ConfigError: nothing there, or nothing that can be called.
    """
    found = load_object(path, key)
    if not callable(found):
        raise ConfigError(f"{key} = {path!r} cannot be called: name a class, or a function")
    if isinstance(found, type) and not _has_protocol(found):
        return lambda: ToolClass(found, arguments)

    def make() -> Environment:
        made = found(**arguments)
        if not _has_protocol(made):
            raise ConfigError(
                f"{key} = {path!r} made a {type(made).__name__}, which is no environment: it needs "
                "tools, reset, call_tool, verify and close"
            )
        return made

    return make


def _has_protocol(candidate: Any) -> bool:
    """Whether it has the methods of an environment; ``tools`` may come with the instance."""
    return all(callable(getattr(candidate, name, None)) for name in ("reset", "call_tool"))
