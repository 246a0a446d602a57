"""Kind ``class``: a teacher that the user wrote, found by its import path."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from actors.teacher.contract.answers import check_size
from actors.teacher.protocol import Teacher
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConfigError
from opd_ray.import_path import load_object
from opd_ray.user_code import guarded, users_code

METHODS = ("info", "score", "close")


def custom_teacher(settings: TeacherSettings, *, vocab_size: int | None, own_topk: int) -> Teacher:
    """A teacher of the user's class; its arguments alone say what it gives, not ``own_topk``.

    Args: as :func:`actors.teacher.registry.make_teacher`.

    Raises:
        ConfigError: as :func:`find_teacher_class`.
        TeacherError: it has a larger vocabulary.
        UserCodeError: what the class itself raises, here and later.
    """
    said = f"{settings.key}.class_path = {settings.class_path!r}"
    made = find_teacher_class(settings)
    with users_code(said):
        teacher: Teacher = guarded(made(**settings.arguments), said)
    check_size(teacher.info(), vocab_size)
    return teacher


def find_teacher_class(settings: TeacherSettings) -> Callable[..., Teacher]:
    """The class at ``class_path`` ("package.module:Class"), fit to be called with ``arguments``.

    Raises:
        ConfigError: no such module or class, a method of
            :class:`actors.teacher.protocol.Teacher` that it lacks, or arguments that its
            constructor does not take.
    """
    key = f"{settings.key}.class_path"
    said = f"{key} = {settings.class_path!r}"
    found = load_object(settings.class_path or "", key)
    if not isinstance(found, type):
        raise ConfigError(f"{said}: that is no class")
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(
            f"{said}: it has no method {', '.join(missing)}; a teacher has {', '.join(METHODS)} "
            "(actors.teacher.protocol.Teacher)"
        )
    try:
        inspect.signature(found).bind(**settings.arguments)
    except TypeError as error:
        raise ConfigError(
            f"{settings.key}.arguments = {settings.arguments}: {settings.class_path} takes "
            f"{inspect.signature(found)}: {error}"
        ) from error
    return found
