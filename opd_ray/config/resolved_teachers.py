"""The teachers of a run in full: the section ``teacher``, and what ``teachers`` lays over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from opd_ray.config.keys import editable
from opd_ray.config.teacher import MAIN, TRAITS, TeacherKind, TeacherSettings


@dataclass
class NamedTeacher(TeacherSettings):
    """A teacher of a configuration in full, which knows its name there."""

    name: str = MAIN


@dataclass(frozen=True)
class Member:
    """One part of an ensemble."""

    name: str  # in ``teachers``; of the first where several are equal
    weight: float  # of the mixture; the weights of an ensemble add up to 1
    settings: TeacherSettings


@dataclass(frozen=True)
class WorkingTeacher:
    """A teacher that gets actors."""

    settings: TeacherSettings
    members: tuple[Member, ...] = ()  # of an ensemble, those of one model as one

    @property
    def models(self) -> list[TeacherSettings]:
        """What it consists of: the members of an ensemble, or itself."""
        return [member.settings for member in self.members] or [self.settings]

    @property
    def accepted(self) -> set[str]:
        """Differences to the student that are accepted of any of its models."""
        return {kind for model in self.models for kind in model.accept_mismatch}

    @property
    def restarts(self) -> tuple[int, str]:
        """How often each replica may be started again, and, in words, why not once more."""
        allowed, key = self.settings.max_restarts, self.settings.key
        if self.settings.follow_decay is None:
            return allowed, f"{key}.max_restarts = {allowed} allows no further start"
        why = "one that follows the student is not started again: it would begin at the start"
        return 0, why


@dataclass(frozen=True)
class TeacherSet:
    """Every teacher of a configuration, and which of them judge what.

    Two names in routes with equal settings are one teacher, called by the first of the names.
    """

    named: Mapping[str, TeacherSettings]  # in full, used or not; the section ``teacher`` first
    asked: Mapping[str, str]  # names by a prompt's source, as ``routes`` has them

    @cached_property
    def working(self) -> dict[str, WorkingTeacher]:
        """Those that get actors, by name; every name in routes and members is to be one of them."""
        return {name: self._working(name) for name in dict.fromkeys(self._first.values())}

    @cached_property
    def routes(self) -> dict[str, str]:
        """From a prompt's source to a working teacher; empty: the only one judges everything."""
        return {source: self._first[name] for source, name in self.asked.items()}

    @property
    def models(self) -> dict[str, TeacherSettings]:
        """Every model that works by its key, members in place of their ensemble."""
        return {model.key: model for one in self.working.values() for model in one.models}

    @property
    def first(self) -> TeacherSettings:
        """One of those that work: signal and its width are the same of all."""
        return next(iter(self.working.values())).settings

    def only(self, name: str) -> TeacherSet:
        """This teacher alone, under its name."""
        return TeacherSet({name: self.named[name]}, {})

    def placed(self, values: Mapping[str, Mapping[str, Any]]) -> TeacherSet:
        """With keys that the placement fills in, by the names of working teachers."""
        changed = {name: replace(self.named[name], **keys) for name, keys in values.items()}
        return replace(self, named={**self.named, **changed})

    @cached_property
    def _first(self) -> dict[str, str]:
        """The first of equal names, by every name that routes ask for."""
        first: dict[str, str] = {}
        for name in self.asked.values() or [next(iter(self.named))]:
            equal = (n for n in first if _same(self.named[n], self.named[name]))
            first.setdefault(name, next(equal, name))
        return first

    def _working(self, name: str) -> WorkingTeacher:
        settings = self.named[name]
        if not settings.traits.mixes_members:
            return WorkingTeacher(settings)
        total = sum(settings.members.values())
        found: list[Member] = []
        for part, weight in settings.members.items():
            # It computes on the ensemble's device and threads, and gives its signal.
            member = replace(
                self.named[part],
                gpus_per_replica=settings.gpus_per_replica,
                threads=settings.threads,
                signal=settings.signal,
                topk=settings.topk,
            )
            share = weight / total
            for place, other in enumerate(found):
                # A member has no process of its own: these say nothing about it.
                ignored = ("replicas", "max_restarts", "answer_timeout_s", "store_bytes")
                if _same(other.settings, member, *ignored):
                    found[place] = replace(other, weight=other.weight + share)
                    break
            else:
                found.append(Member(part, share, member))
        return WorkingTeacher(settings, tuple(found))


def resolve_teachers(
    main: TeacherSettings,
    others: Mapping[str, Mapping[str, Any]],
    routes: Mapping[str, str],
    students_files: Mapping[str, Any],
) -> TeacherSet:
    """The teachers of a configuration's sections ``teacher``, ``teachers`` and ``routes``.

    A teacher of the student's own files takes over ``students_files``, keys and values.
    """
    named: dict[str, TeacherSettings] = {MAIN: main}
    for name, own in others.items():
        base = {**asdict(_base(main, own)), "name": name}
        made = OmegaConf.to_object(OmegaConf.merge(editable(NamedTeacher), base, own))
        assert isinstance(made, NamedTeacher)
        named[name] = made
    for name, settings in named.items():
        if settings.traits.students_files:
            named[name] = replace(settings, **students_files)
    return TeacherSet(named, dict(routes))


def _base(main: TeacherSettings, own: Mapping[str, Any]) -> TeacherSettings:
    """What a further teacher inherits from the section ``teacher``."""
    # Beside a teacher made of the run's other models, one is a model of its own.
    kind = own.get("kind", TeacherKind.hf.value if main.traits.of_a_run else main.kind)
    fresh = TeacherSettings()
    # A cache holds the answers of one teacher.
    own_keys = ["cache", "cache_dir"]
    if kind != main.kind:
        own_keys += [*TRAITS[main.kind].own_keys, "path"]
    return replace(main, kind=kind, **{key: getattr(fresh, key) for key in own_keys})


def _same(one: TeacherSettings, other: TeacherSettings, *ignored: str) -> bool:
    """Equal in everything but what the placement fills in, and how their folder is written."""
    ignored = ("path", "threads", "cpus_per_replica", "when", *ignored)
    keys = [field.name for field in fields(TeacherSettings) if field.name not in ignored]
    return _folder(one.path) == _folder(other.path) and all(
        getattr(one, key) == getattr(other, key) for key in keys
    )


def _folder(path: str | None) -> str | None:
    """A model's folder without links and final slashes; a hub name as it is."""
    return str(Path(path).resolve()) if path and Path(path).is_dir() else path
