"""Objects of the user's own, named as "package.module:object" in a configuration."""

from __future__ import annotations

import importlib
from typing import Any

from opd_ray.errors import ConfigError
from opd_ray.user_code import users_code


def load_object(path: str, key: str) -> Any:
    """The object at ``path``, "package.module:object".

    Args:
        path: as the user wrote it.
        key: the configuration key that holds it, for messages.

    Raises:
        ConfigError: another form, no such module or object, or what its module itself raises, with
            the file and line.
    """
    named = f"{key} = {path!r}"
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{named}: write it as package.module:object")
    try:
        with users_code(f"{named} cannot be imported", ConfigError):
            module = importlib.import_module(module_name)
    except ConfigError as error:
        missing = error.__cause__
        if not isinstance(missing, ModuleNotFoundError) or not _is_part(missing.name, module_name):
            raise
        raise ConfigError(
            f"{named} cannot be imported: {missing}; set PYTHONPATH to the folder that holds it, "
            "on every node"
        ) from missing
    if not hasattr(module, name):
        raise ConfigError(
            f"{named} cannot be imported: {module_name} has no {name!r}; define it there, or "
            "correct the name"
        )
    return getattr(module, name)


def _is_part(name: str | None, module_name: str) -> bool:
    """Whether ``name`` is the module itself or a package that holds it."""
    return name is not None and f"{module_name}.".startswith(f"{name}.")
