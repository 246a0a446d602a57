"""From the configuration's ``teacher.kind`` to a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from actors.teacher.protocol import Teacher
from actors.teacher.support import asked_of_teacher
from opd_ray.config.choices import CacheMode, Support
from opd_ray.config.resolved_teachers import Member
from opd_ray.config.teacher import TeacherKind, TeacherSettings
from opd_ray.importing import importing

# What makes a teacher of each kind but the ensemble, which is put together below. Engines are
# imported where they are used: a run with one kind must not need the others.
_MAKERS: Mapping[str, str] = {
    TeacherKind.hf: "actors.teacher.kinds.hf:HfTeacher",
    TeacherKind.vllm: "actors.teacher.kinds.vllm:VllmTeacher",
    TeacherKind.http: "actors.teacher.http.teacher:HttpTeacher",
    TeacherKind.class_: "actors.teacher.kinds.custom_class:custom_teacher",
    TeacherKind.actor: "actors.teacher.kinds.ray_actor:ActorTeacher",
    TeacherKind.self_: "actors.teacher.kinds.self_student:Follower",
}


def make_teacher(
    settings: TeacherSettings,
    *,
    vocab_size: int | None = None,
    own_topk: int = 0,
    members: Sequence[Member] = (),
    support: Support = Support.teacher,
    trainer: Any = None,
    sleeps: bool = False,
) -> Teacher:
    """The teacher that ``settings`` describe, loaded and ready.

    Args:
        settings: of a teacher of the run, checked.
        vocab_size: real tokens student and teacher share; rows of an output head beyond them are
            left out of the distribution. None: all rows.
        own_topk: how many of its own likeliest tokens each answer names beside the signal, for a
            rule that wants to see them; 0: none.
        members: of an ensemble.
        support: whose tokens the loss tells apart; no top-k is asked of the teacher for the
            student's.
        trainer: Ray's handle of the rank that computes the answers, for kind self with an adapter.
        sleeps: whether it has to give its memory back now and then, for which a vLLM engine is
            started differently.

    Raises:
        TeacherError: a teacher that cannot be loaded, or one of the user's own whose vocabulary is
            larger than the shared one.
    """
    settings = asked_of_teacher(settings, support)
    members = [replace(m, settings=asked_of_teacher(m.settings, support)) for m in members]
    if settings.cache is not CacheMode.off:
        from actors.teacher.cache.teacher import CachedTeacher

        live = replace(settings, cache=CacheMode.off, cache_dir=None)
        load = partial(
            make_teacher,
            live,
            vocab_size=vocab_size,
            own_topk=own_topk,
            trainer=trainer,
            sleeps=sleeps,
        )
        return CachedTeacher(settings, load, own_topk=own_topk)
    if settings.traits.mixes_members:
        from actors.teacher.kinds.ensemble import Ensemble

        made = [
            (m, make_teacher(m.settings, vocab_size=vocab_size, own_topk=own_topk)) for m in members
        ]
        return Ensemble(made, settings, own_topk=own_topk)
    if trainer is not None:
        from actors.teacher.kinds.students_base import StudentsBase

        return StudentsBase(settings, trainer, vocab_size=vocab_size, own_topk=own_topk)
    module, _, name = _MAKERS[settings.kind].partition(":")
    with importing():
        maker: Callable[..., Teacher] = getattr(import_module(module), name)
    how = {"sleeps": sleeps} if settings.traits.vllm_engine else {}
    return maker(settings, vocab_size=vocab_size, own_topk=own_topk, **how)
