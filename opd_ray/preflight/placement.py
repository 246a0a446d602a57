"""What excludes what where roles are on the same GPUs (``cluster.placement``)."""

from __future__ import annotations

from collections.abc import Iterator

from actors.teacher.kinds.custom_class import find_teacher_class
from opd_ray.config.choices import Beside, CacheMode, PlacementChoice, SyncBackend, TeacherTiming
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConfigError

_TURNS = "cluster.placement = turns"
_SHARED = "cluster.placement = shared"
# Of the role that has teachers beside it: its actors, and the GPUs of each.
_HOSTS = {
    Beside.rollout: ("rollout", "actors", "gpus_per_actor"),
    Beside.trainer: ("trainer", "ranks", "gpus_per_rank"),
}


def placement_problems(config: Config) -> list[str]:
    """Every such combination."""
    found = [*_ipc_problems(config)]
    if config.cluster.placement is PlacementChoice.shared:
        found += _shared_problems(config)
    if config.cluster.placement is PlacementChoice.turns:
        found += _turns_problems(config)
    return found


def _computing(config: Config) -> list[TeacherSettings]:
    """Teachers that run something here; others ask, or read what was answered before."""
    working = [teacher.settings for teacher in config.teacher_set.working.values()]
    return [
        one for one in working if not one.traits.asks_others and one.cache is not CacheMode.replay
    ]


def _turns_problems(config: Config) -> Iterator[str]:
    run, teachers = config.run, _computing(config)
    if run.overlap:
        yield (
            f"{_TURNS} with run.overlap = true: trainers would work while rollouts are written, "
            "and their GPUs are the same; use run.overlap=false, or cluster.placement=separate"
        )
    if run.lag:
        yield (
            f"{_TURNS} with run.lag = {run.lag}: the next rollouts would be written while trainers "
            "work, and their GPUs are the same; use run.lag=0, or cluster.placement=separate"
        )
    if config.sync.backend is SyncBackend.nccl:
        yield (
            f"{_TURNS} with sync.backend = nccl: NCCL refuses two processes on one GPU; use "
            "sync.backend=ipc, or ray"
        )
    gpus: dict[str, float] = {
        "rollout.gpus_per_actor": config.rollout.gpus_per_actor,
        "trainer.gpus_per_rank": config.trainer.gpus_per_rank,
    }
    # A class of the user's may compute without a GPU beside those that have one.
    on_same = (one for one in teachers if one.gpus_per_replica or not one.traits.user_made)
    gpus |= {f"{one.key}.gpus_per_replica": one.gpus_per_replica for one in on_same}
    if len({*gpus.values()}) > 1 or not {*gpus.values()} <= {0, 1}:
        told = ", ".join(f"{key} = {value:g}" for key, value in gpus.items())
        yield (
            f"{_TURNS} with {told}: an actor of each role comes on the same GPU, one after "
            "another; set all of these to 1, or all to 0"
        )
    for teacher in teachers:
        if teacher.when is TeacherTiming.streaming:
            yield (
                f"{_TURNS} with {teacher.key}.when = streaming: it would score while rollouts are "
                f"written, and their turn is then; use {teacher.key}.when=null"
            )
        if teacher.gpus_per_replica and teacher.traits.user_made and not _sleeps(teacher):
            yield (
                f"{_TURNS} with {teacher.key}.kind = {teacher.kind}: {teacher.class_path} cannot "
                "give its memory back; give it the methods sleep() and wake() "
                f"(actors.teacher.protocol.SleepingTeacher), or {teacher.key}.gpus_per_replica=0"
            )


def _sleeps(teacher: TeacherSettings) -> bool:
    """Whether a class of the user's gives its memory back."""
    try:
        made = find_teacher_class(teacher)
    except ConfigError:
        return True  # told elsewhere
    return all(callable(getattr(made, name, None)) for name in ("sleep", "wake"))


def _shared_problems(config: Config) -> Iterator[str]:
    role, number, key = _HOSTS[config.cluster.teacher_beside]
    settings = getattr(config, role)
    hosts, host_gpus = getattr(settings, number), getattr(settings, key)
    teachers = _computing(config)
    for teacher in teachers:
        if config.asks_trainers(teacher):
            yield (
                f"{_SHARED} with {teacher.key}.kind = {teacher.kind} and student.lora: its answers "
                "are computed by the trainers, so there is nothing to share; use "
                "cluster.placement=separate"
            )
            return
    if not teachers:
        yield (
            f"{_SHARED} with teachers that only ask others: nothing is here to share a GPU; use "
            "cluster.placement=separate"
        )
        return
    shares = {f"{one.key}.gpus_per_replica": one.gpus_per_replica for one in teachers}
    if host_gpus > 1 or (not host_gpus and any(shares.values())):
        yield (
            f"{_SHARED} with {role}.{key} = {host_gpus}: its teachers have shares of one GPU of "
            f"each actor of that role; use {role}.{key}=1, or another cluster.teacher_beside"
        )
    if not host_gpus:
        return  # on CPUs there is nothing to be shared out
    for name, share in shares.items():
        if not 0 < share < 1:
            yield (
                f"{_SHARED} with {name} = {share:g}: it is the share of a GPU that a replica has "
                f"beside the {role}; use one above 0 and below 1, such as 0.3"
            )
    # The first host has the most: replicas are dealt out from it on.
    most = sum(one.gpus_per_replica * -(-one.replicas // hosts) for one in teachers)
    if most >= 1 and all(0 < share < 1 for share in shares.values()):
        told = " + ".join(
            f"{-(-one.replicas // hosts)} x {one.gpus_per_replica:g}" for one in teachers
        )
        yield (
            f"{_SHARED}: teachers have {told} = {most:g} of a GPU, which leaves the {role} "
            f"nothing; lower {', '.join(shares)}"
        )


def _ipc_problems(config: Config) -> Iterator[str]:
    if config.sync.backend is not SyncBackend.ipc:
        return
    on_gpus = config.rollout.gpus_per_actor > 0 and config.trainer.gpus_per_rank > 0
    if config.cluster.placement is not PlacementChoice.turns or not on_gpus:
        yield (
            f"sync.backend = ipc with cluster.placement = {config.cluster.placement}, "
            f"rollout.gpus_per_actor = {config.rollout.gpus_per_actor} and trainer.gpus_per_rank = "
            f"{config.trainer.gpus_per_rank}: it joins a rank and an engine that are on one GPU; "
            "use cluster.placement=turns on GPUs, or sync.backend=ray or nccl"
        )
    elif config.rollout.actors > config.trainer.ranks:
        yield (
            f"sync.backend = ipc with rollout.actors = {config.rollout.actors} and trainer.ranks = "
            f"{config.trainer.ranks}: an engine reads the memory of the rank on its own GPU, and "
            "some have none there; use sync.backend=ray, or at least as many trainer.ranks"
        )
