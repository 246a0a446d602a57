"""From the configuration's ``teacher.kind`` to a teacher."""

from __future__ import annotations

from actors.teacher.protocol import Teacher, TeacherError
from opd_ray.config.schema import TeacherSettings


def make_teacher(
    settings: TeacherSettings, *, vocab_size: int | None = None, own_topk: int = 0
) -> Teacher:
    """The teacher that ``settings`` describe, loaded and ready.

    Args:
        settings: the ``teacher`` section of a run.
        vocab_size: real tokens student and teacher share (:mod:`opd_ray.pairing`); None: all rows.
        own_topk: how many of its own likeliest tokens a rule wants to see; 0: none.

    Raises:
        TeacherError: an unknown kind, or a teacher that cannot be loaded.
    """
    # Engines are imported where they are used: a run with one kind must not need the others.
    if settings.kind == "hf":
        from actors.teacher.hf import HfTeacher

        return HfTeacher(settings, vocab_size=vocab_size, own_topk=own_topk)
    raise TeacherError(f"teacher.kind is {settings.kind!r}; there is: hf")
