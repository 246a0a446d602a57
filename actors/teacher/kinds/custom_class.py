"""Kind ``class``: a teacher that the user wrote, found by its import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from actors.teacher.protocol import Teacher
from opd_ray.errors import ConfigError
from opd_ray.import_path import load_object

METHODS = ("info", "score", "close")


def find_teacher_class(class_path: str, arguments: Mapping[str, Any]) -> type[Teacher]:
    """The class at ``class_path`` ("package.module:Class"), fit to be called with ``arguments``.

    Raises:
        ConfigError: no such module or class, a method of
            :class:`actors.teacher.protocol.Teacher` that it lacks, or arguments that its
            constructor does not take.
    """
    found = load_object(class_path, "teacher.class_path")
    if not isinstance(found, type):
        raise ConfigError(f"teacher.class_path = {class_path!r}: that is no class")
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(
            f"teacher.class_path = {class_path!r}: it has no method {', '.join(missing)}; a "
            f"teacher has {', '.join(METHODS)} (actors.teacher.protocol.Teacher)"
        )
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"teacher.arguments = {dict(arguments)}: {class_path} takes "
            f"{inspect.signature(found)}: {error}"
        ) from error
    return found
