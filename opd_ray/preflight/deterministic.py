"""Where ``run.deterministic`` cannot be had, or not by us alone: said when a run starts."""

from __future__ import annotations

from collections.abc import Iterator

from opd_ray.config.choices import CacheMode
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings

_SET = "run.deterministic = true"


def deterministic_notes(config: Config) -> list[str]:
    """A line for each part of a run that may still round, or answer, otherwise the next time."""
    if not config.run.deterministic:
        return []
    return [*_teachers(config), *_environments(config), *_gpus(config)]


def _teachers(config: Config) -> Iterator[str]:
    for key, teacher in config.teacher_set.models.items():
        if teacher.cache is CacheMode.replay_or_ask:
            yield (
                f"{_SET} with {key}.cache = replay_or_ask: which answers are on disk decides what "
                f"is asked together, and so how it rounds; use {key}.cache=replay, or record"
            )
        elif teacher.cache is not CacheMode.replay and (why := _not_ours(key, teacher)):
            yield f"{_SET}, but {why}"


def _not_ours(key: str, teacher: TeacherSettings) -> str | None:
    """Why a teacher's answers are not in our hands; None: they are."""
    remedy = f"to train on the same answers again, record them ({key}.cache=record, then replay)"
    if teacher.traits.asks_server:
        return (
            f"{key}.kind = {teacher.kind}: what the server reads beside a rollout decides how its "
            f"answer rounds, so two runs may drift apart; {remedy}"
        )
    if teacher.traits.asks_cluster:
        return (
            f"{key}.kind = {teacher.kind}: the actor {teacher.actor_name!r} is not of this run, "
            f"and what it does for others may decide how its answers round; {remedy}"
        )
    if teacher.traits.user_made:
        return (
            f"{key}.kind = {teacher.kind}: {teacher.class_path} is asked in the same batches every "
            f"time, and it is up to it to answer them the same; {remedy}"
        )
    return None


def _environments(config: Config) -> Iterator[str]:
    """Code of the user's, whose answers the student reads."""
    environments = config.environment_set
    named = {"environment": environments.default} | {
        f"environments.{source}": one for source, one in environments.by_source.items()
    }
    seconds = environments.default.call_timeout_s
    for key, one in named.items():
        if one.path is not None:
            yield (
                f"{_SET} with {key}.path = {one.path}: it is up to the environment to answer the "
                f"same calls the same; a call longer than "
                f"environment.call_timeout_s = {seconds:g} counts as hung"
            )


def _gpus(config: Config) -> Iterator[str]:
    teachers = config.teacher_set.working.values()
    used = [config.rollout.gpus_per_actor, config.trainer.gpus_per_rank]
    if any([*used, *(one.settings.gpus_per_replica for one in teachers)]):
        yield (
            f"{_SET} on GPUs: torch, cuBLAS and vLLM are set for it, but two such runs have never "
            "been compared; compare the weights of two short ones before you rely on it"
        )
