"""From the configuration's ``teacher.kind`` to a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.teacher.protocol import Teacher, TeacherError, Wanted
from opd_ray.config.choices import CacheMode
from opd_ray.config.resolved_teachers import Member
from opd_ray.config.teacher import TEACHER_KINDS, TeacherSettings


def make_teacher(
    settings: TeacherSettings,
    *,
    vocab_size: int | None = None,
    own_topk: int = 0,
    members: Sequence[Member] = (),
) -> Teacher:
    """The teacher that ``settings`` describe, loaded and ready.

    Args:
        settings: the ``teacher`` section of a run.
        vocab_size: real tokens student and teacher share; None: all rows.
        own_topk: how many of its own likeliest tokens a rule wants to see; 0: none.
        members: of an ensemble (:func:`opd_ray.config.resolved_teachers.members_of`).

    Raises:
        TeacherError: an unknown kind, a teacher that cannot be loaded, or one of the user's own
            whose vocabulary is larger than the shared one.
    """
    if settings.cache is not CacheMode.off:
        from actors.teacher.cache.teacher import CachedTeacher

        live = replace(settings, cache=CacheMode.off, cache_dir=None)
        return CachedTeacher(
            settings,
            lambda: make_teacher(live, vocab_size=vocab_size, own_topk=own_topk),
            own_topk=own_topk,
        )
    # Engines are imported where they are used: a run with one kind must not need the others.
    if settings.kind == "hf":
        from actors.teacher.kinds.hf import HfTeacher

        return HfTeacher(settings, vocab_size=vocab_size, own_topk=own_topk)
    if settings.kind == "vllm":
        from actors.teacher.kinds.vllm import VllmTeacher

        return VllmTeacher(settings, vocab_size=vocab_size, own_topk=own_topk)
    if settings.kind == "http":
        from actors.teacher.http.teacher import HttpTeacher

        return HttpTeacher(settings, vocab_size=vocab_size, own_topk=own_topk)
    if settings.kind == "self":
        from actors.teacher.kinds.self_student import Follower

        return Follower(settings, vocab_size=vocab_size, own_topk=own_topk)
    if settings.kind == "ensemble":
        from actors.teacher.kinds.ensemble import Ensemble

        made = [
            (m, make_teacher(m.settings, vocab_size=vocab_size, own_topk=own_topk)) for m in members
        ]
        return Ensemble(made, settings, own_topk=own_topk)
    if settings.kind == "class":
        from actors.teacher.kinds.custom_class import find_teacher_class

        own = find_teacher_class(settings.class_path or "", settings.arguments)
        return _of_size(own(**settings.arguments), vocab_size)
    if settings.kind == "actor":
        from actors.teacher.kinds.ray_actor import ActorTeacher

        wanted = Wanted(settings.signal, settings.topk, own_topk)
        actor = ActorTeacher(settings.actor_name or "", settings.actor_namespace, wanted)
        return _of_size(actor, vocab_size)
    raise TeacherError(f"teacher.kind is {settings.kind!r}; there is: {', '.join(TEACHER_KINDS)}")


def _of_size(teacher: Teacher, vocab_size: int | None) -> Teacher:
    """Refuse a distribution over tokens that the student has not; too few are found elsewhere."""
    info = teacher.info()
    if vocab_size is not None and info.vocab_size > vocab_size:
        raise TeacherError(
            f"teacher {info.name!r}: its info() says {info.vocab_size} tokens, student and teacher "
            f"share {vocab_size}: leave the others (padding rows, too) out of its distribution"
        )
    return teacher
