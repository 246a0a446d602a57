"""What several teachers cannot have: names, routes, members and signals that do not go together."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator

from opd_ray.config.choices import SignalChoice
from opd_ray.config.keys import layer_problems, shown
from opd_ray.config.ranges import range_problems
from opd_ray.config.resolved_teachers import WorkingTeacher
from opd_ray.config.schema import Config
from opd_ray.config.teacher import MAIN, TRAITS, TeacherSettings
from opd_ray.preflight.teacher import signal_problems, teacher_problems


def name_problems(config: Config) -> list[str]:
    """What makes it unclear which teachers there are; nothing else can be checked then."""
    problems = [
        text
        for name, own in config.teachers.items()
        for text in layer_problems(TeacherSettings, own, f"teachers.{name}")
    ]
    if MAIN in config.teachers:
        problems.append(f"teachers.{MAIN}: this name is the section teacher's; choose another")
    kinds = {"teacher": config.teacher.kind}
    kinds |= {f"teachers.{n}": own["kind"] for n, own in config.teachers.items() if "kind" in own}
    for key, kind in kinds.items():
        if kind not in TRAITS:
            near = difflib.get_close_matches(str(kind), TRAITS, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            problems.append(f"{key}.kind = {kind!r}: {meant}there is {', '.join(TRAITS)}")
    if problems:
        return problems
    teachers = config.teacher_set
    known = ", ".join(teachers.named)
    problems += [
        f"routes.{source} = {name!r}: no such teacher; there is {known}"
        for source, name in teachers.asked.items()
        if name not in teachers.named
    ]
    for settings in teachers.named.values():
        if settings.traits.mixes_members:
            problems += _member_problems(config, settings)
    return problems


def teachers_problems(config: Config) -> Iterator[str]:
    """Every problem of ``teacher``, ``teachers`` and ``routes`` without :func:`name_problems`."""
    yield from _unused(config)
    yield from _path_of_self(config)
    yield from _signals(config)
    yield from signal_problems(config)
    teachers = config.teacher_set
    working = {one.settings.key: one.settings for one in teachers.working.values()}
    told = None
    for key, settings in (working | teachers.models).items():
        yield from range_problems(key, settings, told)
        yield from teacher_problems(config, settings)
        told = told or settings
    for one in teachers.working.values():
        yield from _together(one)


def _member_problems(config: Config, ensemble: TeacherSettings) -> Iterator[str]:
    key = ensemble.key
    if not ensemble.members:
        yield f"{key}.members is empty: kind ensemble needs names of teachers, with weights"
    named = {name: other for name, other in config.teacher_set.named.items() if name != MAIN}
    for name, weight in ensemble.members.items():
        if name not in named:
            there = ", ".join(named) or "none"
            yield f"{key}.members.{name}: no such teacher in teachers; there is {there}"
            continue
        if not (weight > 0 and math.isfinite(weight)):
            yield f"{key}.members.{name} = {weight:g}: a weight must be above 0"
        if remedy := named[name].traits.not_member:
            yield (
                f"{key}.members.{name}: a teacher of kind {named[name].kind!r} cannot be part of "
                f"an ensemble; {remedy}"
            )


def _unused(config: Config) -> Iterator[str]:
    teachers = config.teacher_set
    used = set(teachers.asked.values()) or {next(iter(teachers.named))}
    for name in list(used):
        if teachers.named[name].traits.mixes_members:
            used |= teachers.named[name].members.keys()
    for name in teachers.named:
        if name not in used and name != MAIN:
            yield (
                f"teachers.{name}: nothing uses it; name it in routes or in the members of an "
                "ensemble, or take it out"
            )


def _path_of_self(config: Config) -> Iterator[str]:
    for name, settings in config.teacher_set.named.items():
        path = config.teacher.path if name == MAIN else config.teachers[name].get("path")
        if settings.traits.students_files and path is not None:
            yield (
                f"{settings.key}.path = {shown(path)} with kind {settings.kind}: its weights are "
                "the student's, at student.path; leave it out"
            )


def _signals(config: Config) -> Iterator[str]:
    """The loss takes one kind of signal."""
    (_, main), *others = config.teacher_set.named.items()
    for name, settings in others:
        if settings.signal != main.signal:
            yield (
                f"teachers.{name}.signal = {settings.signal} with teacher.signal = {main.signal}: "
                "the loss takes one kind of signal; leave it out"
            )
        elif settings.signal is SignalChoice.topk and settings.topk != main.topk:
            yield (
                f"teachers.{name}.topk = {settings.topk} with teacher.topk = {main.topk}: the loss "
                "takes signals of one width; leave it out"
            )


def _together(teacher: WorkingTeacher) -> Iterator[str]:
    settings = teacher.settings
    dtypes = {member.settings.dtype for member in teacher.members}
    if settings.signal is SignalChoice.hidden and len(dtypes) > 1:
        yield (
            f"{settings.key}.members: their dtypes are {', '.join(sorted(dtypes))}; hidden states "
            "of one rollout travel in one format: give all members the same"
        )
