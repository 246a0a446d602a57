"""Environments by import path, as a configuration names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opd_ray.environments.environment import Environment, ToolSchema
from opd_ray.environments.tool_class import ToolClass, check_tool_class
from opd_ray.errors import ConfigError
from opd_ray.import_path import load_object
from opd_ray.user_code import users_code

EnvironmentFactory = Callable[[], Environment]

# Of the protocol; a class that has the first two means to be an environment as it is.
_METHODS = ("reset", "call_tool", "verify", "close")


def environment_factory(
    path: str,
    arguments: Mapping[str, Any],
    key: str,
    tools: Sequence[ToolSchema] | None = None,
) -> EnvironmentFactory:
    """Makes one environment a rollout of the class or function at ``path``.

    What it makes is an environment as it is, or an object whose public methods become the tools.
    Of a class all is checked that can be without an instance; nothing of it is called yet.

    Args:
        path: "package.module:object".
        arguments: of the class or function.
        key: the configuration key that holds the path, for messages.
        tools: the schemas, where another process has checked the class: making them loads torch.

    Raises:
        ConfigError: nothing there, nothing that can be called with these arguments, or a class that
            is no environment.
    """
    found = load_object(path, key)
    said = f"{key} = {path!r}"
    if not callable(found):
        raise ConfigError(f"{said} cannot be called: name a class, or a function")
    _check_arguments(found, path, arguments, key)
    if isinstance(found, type) and tools is None:
        _check_class(found, said)

    def make() -> Environment:
        with users_code(said):
            made = found(**arguments)
        if not isinstance(found, type) and tools is None:
            _check_class(type(made), said)
        if not _has_protocol(made):
            return ToolClass(made, tools)
        # Not asked for: a property may do anything.
        if inspect.getattr_static(made, "tools", None) is None:
            raise ConfigError(f"{said}: {type(made).__name__} has no tools, its list of schemas")
        environment: Environment = made
        return environment

    return make


def _has_protocol(candidate: Any) -> bool:
    """Whether it means to be an environment as it is."""
    return all(callable(getattr(candidate, name, None)) for name in ("reset", "call_tool"))


def _check_class(cls: type, said: str) -> None:
    if not _has_protocol(cls):
        try:
            check_tool_class(cls)
        except ConfigError as error:
            raise ConfigError(f"{said}: {error}") from error
        return
    if missing := [name for name in _METHODS if not callable(getattr(cls, name, None))]:
        raise ConfigError(
            f"{said}: {cls.__name__} has no method {', '.join(missing)}; an environment has tools, "
            f"{', '.join(_METHODS)} (opd_ray.environments.environment.Environment)"
        )


def _check_arguments(
    found: Callable[..., Any], path: str, arguments: Mapping[str, Any], key: str
) -> None:
    try:
        signature = inspect.signature(found)
    except ValueError:  # a builtin that does not say
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{key.removesuffix('path')}arguments = {dict(arguments)}: {path} takes {signature}: "
            f"{error}"
        ) from error
