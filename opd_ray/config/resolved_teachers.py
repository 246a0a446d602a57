"""The teachers of a run in full: the section ``teacher``, and what ``teachers`` lays over it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from opd_ray.config.choices import CacheMode
from opd_ray.config.keys import editable
from opd_ray.config.schema import Config
from opd_ray.config.teacher import KIND_KEYS, TeacherSettings
from opd_ray.errors import OpdError

# The name of the section ``teacher`` in routes.
MAIN = "teacher"
# Kinds that no teacher inherits: a further teacher beside one of these is a model of its own.
_NOT_INHERITED = ("ensemble", "self")


@dataclass(frozen=True)
class Member:
    """One part of an ensemble."""

    name: str  # in ``teachers``; of the first where several are equal
    weight: float  # of the mixture; the weights of an ensemble add up to 1
    settings: TeacherSettings


@dataclass(frozen=True)
class Cast:
    """Which teachers get actors, and who judges what.

    Two names with equal settings are one teacher, called by the first of the names.
    """

    teachers: Mapping[str, TeacherSettings]
    routes: Mapping[str, str]  # from a prompt's source; empty: the only teacher judges everything


def cast_of(config: Config) -> Cast:
    """The teachers that ``config`` uses."""
    everyone = named_teachers(config)
    teachers: dict[str, TeacherSettings] = {}
    of: dict[str, str] = {}
    for name in dict.fromkeys(config.routes.values()) if config.routes else [MAIN]:
        of[name] = next((k for k, v in teachers.items() if _same(v, everyone[name])), name)
        teachers.setdefault(of[name], everyone[name])
    return Cast(teachers, {source: of[name] for source, name in config.routes.items()})


def members_of(config: Config, settings: TeacherSettings) -> tuple[Member, ...]:
    """The parts of an ensemble, those of one model as one; empty for every other kind.

    They compute on the ensemble's device and threads, and give its signal.
    """
    if settings.kind != "ensemble":
        return ()
    everyone, total = named_teachers(config), sum(settings.members.values())
    found: list[Member] = []
    for name, weight in settings.members.items():
        member = replace(
            everyone[name],
            **{key: getattr(settings, key) for key in ("gpus_per_replica", "threads", "signal")},
            topk=settings.topk,
        )
        share = weight / total
        for place, other in enumerate(found):
            if _same_model(other.settings, member):
                found[place] = replace(other, weight=other.weight + share)
                break
        else:
            found.append(Member(name, share, member))
    return tuple(found)


def parts_of(config: Config, settings: TeacherSettings) -> list[TeacherSettings]:
    """The models that a teacher consists of: the members of an ensemble, or itself."""
    return [member.settings for member in members_of(config, settings)] or [settings]


def models_of(config: Config) -> dict[str, TeacherSettings]:
    """Every teacher that works in the run by its key, members in place of their ensemble."""
    found: dict[str, TeacherSettings] = {}
    for name, settings in cast_of(config).teachers.items():
        parts = members_of(config, settings)
        found.update({key_of(part.name): part.settings for part in parts})
        if not parts:
            found[key_of(name)] = settings
    return found


def named_teachers(config: Config) -> dict[str, TeacherSettings]:
    """Every teacher of ``config`` in full, used or not; ``teacher`` is the section itself."""
    named = {MAIN: config.teacher}
    for name, own in config.teachers.items():
        made = OmegaConf.to_object(
            OmegaConf.merge(editable(TeacherSettings), asdict(_base(config.teacher, own)), own)
        )
        assert isinstance(made, TeacherSettings)
        named[name] = made
    return {name: _resolved(config, settings) for name, settings in named.items()}


def with_main(config: Config, settings: TeacherSettings) -> Config:
    """``config`` as it would be with this teacher alone."""
    return replace(config, teacher=settings, teachers={}, routes={})


def key_of(name: str) -> str:
    """Where the configuration speaks of a teacher: "teacher" or "teachers.NAME"."""
    return name if name == MAIN else f"teachers.{name}"


def restarts_of(name: str, settings: TeacherSettings) -> tuple[int, str]:
    """How often each replica may be started again, and, in words, why not once more."""
    if settings.follow_decay is not None:
        return 0, "one that follows the student is not started again: it would begin at the start"
    allowed = settings.max_restarts
    return allowed, f"{key_of(name)}.max_restarts = {allowed} allows no further start"


def in_words_of(key: str, text: str) -> str:
    """A message that speaks of the section ``teacher``, about the teacher at ``key``.

    ``signal`` and ``topk`` stay: they are the section's for all.
    """
    return re.sub(r"(?<![\w.])teacher\.(?!signal\b|topk\b)", f"{key}.", text)


@contextmanager
def speaking_of(key: str) -> Iterator[None]:
    """Errors of the block that speak of the section ``teacher`` speak of the teacher at ``key``."""
    try:
        yield
    except OpdError as error:
        error.args = (in_words_of(key, str(error)),)
        raise


def _base(main: TeacherSettings, own: Mapping[str, Any]) -> TeacherSettings:
    """What a further teacher inherits from the section ``teacher``."""
    kind = own.get("kind", "hf" if main.kind in _NOT_INHERITED else main.kind)
    # A cache holds the answers of one teacher.
    base = replace(main, kind=kind, cache=CacheMode.off, cache_dir=None)
    if kind != main.kind:
        fresh = TeacherSettings()
        for key in (*KIND_KEYS.get(main.kind, ()), "path"):
            setattr(base, key, getattr(fresh, key))
    return base


def _resolved(config: Config, settings: TeacherSettings) -> TeacherSettings:
    """Kind self reads the student's own files."""
    if settings.kind != "self":
        return settings
    student = config.student
    return replace(settings, path=student.path, trust_remote_code=student.trust_remote_code)


def _same(one: TeacherSettings, other: TeacherSettings) -> bool:
    """Equal in everything but what the placement fills in, and how their folder is written."""
    if _folder(one.path) != _folder(other.path):
        return False
    return one == replace(
        other, path=one.path, threads=one.threads, cpus_per_replica=one.cpus_per_replica
    )


def _same_model(one: TeacherSettings, other: TeacherSettings) -> bool:
    """Equal in everything that matters to a member, which has no process of its own."""
    return _same(
        one,
        replace(
            other,
            replicas=one.replicas,
            max_restarts=one.max_restarts,
            store_bytes=one.store_bytes,
        ),
    )


def _folder(path: str | None) -> str | None:
    """A model's folder without links and final slashes; a hub name as it is."""
    return str(Path(path).resolve()) if path and Path(path).is_dir() else path


def settled_teachers(config: Config, placed: Mapping[str, Mapping[str, Any]]) -> Config:
    """``config`` with keys set by the placement in place, by the name of each teacher of the cast.

    Names that stand for the same teacher get the same.
    """
    if not placed:
        return config
    cast, everyone = cast_of(config), named_teachers(config)
    settled = config
    for name, values in placed.items():
        for same in (n for n, s in everyone.items() if _same(s, cast.teachers[name])):
            if same == MAIN:
                settled = replace(settled, teacher=replace(settled.teacher, **values))
            else:
                own = {**config.teachers[same], **values}
                settled = replace(settled, teachers={**settled.teachers, same: own})
    return settled
