"""What several teachers cannot have: names, routes, members and signals that do not go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from opd_ray.config.choices import SignalChoice
from opd_ray.config.keys import layer_problems, shown
from opd_ray.config.resolved_teachers import (
    MAIN,
    cast_of,
    in_words_of,
    key_of,
    members_of,
    models_of,
    named_teachers,
    with_main,
)
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings
from opd_ray.preflight.teacher import teacher_problems

# Kinds that cannot be part of an ensemble, and what to do instead.
_NO_MEMBERS = {
    "ensemble": "list its members instead",
    "self": "use it alone, or by a route",
    "vllm": (
        "only one vLLM engine fits a process; use hf, or serve it (opd-ray serve-teacher --teacher "
        "NAME) and give kind actor"
    ),
    "http": "it knows bounds of some of the student's tokens, not values; use it by a route",
}


def name_problems(config: Config) -> list[str]:
    """What makes it unclear which teachers there are; nothing else can be checked then."""
    problems = [
        text
        for name, own in config.teachers.items()
        for text in layer_problems(TeacherSettings, own, f"teachers.{name}")
    ]
    if MAIN in config.teachers:
        problems.append(f"teachers.{MAIN}: this name is the section teacher's; choose another")
    if problems:
        return problems
    everyone = named_teachers(config)
    known = ", ".join(everyone)
    problems += [
        f"routes.{source} = {name!r}: no such teacher; there is {known}"
        for source, name in config.routes.items()
        if name not in everyone
    ]
    for name, settings in everyone.items():
        problems += _member_problems(config, key_of(name), settings)
    return problems


def teachers_problems(config: Config, ranges: Callable[[Config], Iterator[str]]) -> Iterator[str]:
    """Every problem of ``teacher``, ``teachers`` and ``routes``, where the names are clear.

    Args:
        config: without :func:`name_problems`.
        ranges: problems of single values of a config; those of its section teacher are told.
    """
    yield from _unused(config)
    yield from _path_of_self(config)
    yield from _signals(config)
    cast = cast_of(config)
    working = {key_of(name): settings for name, settings in cast.teachers.items()}
    told: set[str] = set()
    for key, settings in (working | models_of(config)).items():
        alone = with_main(config, settings)
        found = [text for text in ranges(alone) if text.startswith("teacher.")]
        for text in [*found, *teacher_problems(alone)]:
            if text not in told:  # inherited ones are told once
                told.add(text)
                yield in_words_of(key, text)
    for name, settings in cast.teachers.items():
        yield from _together(config, name, settings)


def _member_problems(config: Config, key: str, settings: TeacherSettings) -> Iterator[str]:
    if settings.kind != "ensemble":
        return
    if not settings.members:
        yield f"{key}.members is empty: kind ensemble needs names of teachers, with weights"
    for name, weight in settings.members.items():
        if name not in config.teachers:
            there = ", ".join(config.teachers) or "none"
            yield f"{key}.members.{name}: no such teacher in teachers; there is {there}"
            continue
        if not (weight > 0 and math.isfinite(weight)):
            yield f"{key}.members.{name} = {weight:g}: a weight must be above 0"
        kind = named_teachers(config)[name].kind
        if kind in _NO_MEMBERS:
            yield (
                f"{key}.members.{name}: a teacher of kind {kind!r} cannot be part of an ensemble; "
                f"{_NO_MEMBERS[kind]}"
            )


def _unused(config: Config) -> Iterator[str]:
    everyone, working = named_teachers(config), set(config.routes.values()) or {MAIN}
    for name in list(working):
        if everyone[name].kind == "ensemble":
            working |= everyone[name].members.keys()
    for name in config.teachers:
        if name not in working:
            yield (
                f"teachers.{name}: nothing uses it; name it in routes or in the members of an "
                "ensemble, or take it out"
            )


def _path_of_self(config: Config) -> Iterator[str]:
    paths = {MAIN: config.teacher.path} | {n: own.get("path") for n, own in config.teachers.items()}
    for name, settings in named_teachers(config).items():
        if settings.kind == "self" and paths[name] is not None:
            yield (
                f"{key_of(name)}.path = {shown(paths[name])} with kind self: its weights are the "
                "student's, at student.path; leave it out"
            )


def _signals(config: Config) -> Iterator[str]:
    """The loss takes one kind of signal."""
    main = config.teacher
    for name, settings in named_teachers(config).items():
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


def _together(config: Config, name: str, settings: TeacherSettings) -> Iterator[str]:
    key, members = key_of(name), members_of(config, settings)
    dtypes = {member.settings.dtype for member in members}
    if settings.signal is SignalChoice.hidden and len(dtypes) > 1:
        yield (
            f"{key}.members: their dtypes are {', '.join(sorted(dtypes))}; hidden states of one "
            "rollout travel in one format: give all members the same"
        )
