"""Kind ``class``: a teacher that the user wrote, found by its import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from actors.teacher.protocol import Teacher, TeacherError

METHODS = ("info", "score", "close")


def find_teacher_class(class_path: str, arguments: Mapping[str, Any]) -> type[Teacher]:
    """The class at ``class_path`` ("package.module:Class"), fit to be called with ``arguments``.

    What the module itself raises when it is imported is passed on.

    Raises:
        TeacherError: no such module or class, a method of
            :class:`actors.teacher.protocol.Teacher` that it lacks, or arguments that its
            constructor does not take.
    """
    module_name, _, name = class_path.partition(":")
    if not module_name or not name:
        raise TeacherError(f"teacher.class_path = {class_path!r}: write it as package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TeacherError(
            f"teacher.class_path = {class_path!r}: {error}; set PYTHONPATH to the folder that "
            "holds it, on every node"
        ) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise TeacherError(
            f"teacher.class_path = {class_path!r}: {module_name} has no class of that name"
        )
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise TeacherError(
            f"teacher.class_path = {class_path!r}: it has no method {', '.join(missing)}; a "
            f"teacher has {', '.join(METHODS)} (actors.teacher.protocol.Teacher)"
        )
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise TeacherError(
            f"teacher.arguments = {dict(arguments)}: {class_path} takes "
            f"{inspect.signature(found)}: {error}"
        ) from error
    return found
