"""Objects of the user's own, named as "package.module:object" in a configuration."""

from __future__ import annotations

import importlib
from typing import Any

from opd_ray.errors import ConfigError


def load_object(path: str, key: str) -> Any:
    """The object at ``path``, "package.module:object"; what its module itself raises is passed on.

    Args:
        path: as the user wrote it.
        key: the configuration key that holds it, for messages.

    Raises:
        ConfigError: another form, no such module (or one that it imports), or no such object in it.
    """
    named = f"{key} = {path!r}"
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{named}: write it as package.module:object")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{named} cannot be imported: {error}; set PYTHONPATH to the folder that holds it, "
            "on every node"
        ) from error
    if not hasattr(module, name):
        raise ConfigError(
            f"{named} cannot be imported: {module_name} has no {name!r}; define it there, or "
            "correct the name"
        )
    return getattr(module, name)
