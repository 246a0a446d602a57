"""``opd-ray serve-teacher``: a teacher that several runs share, in a Ray cluster that runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.run_folder import folder_variables
from actors.teacher.protocol import TeacherError
from actors.teacher.shared import MAX_CALLS, ServingStats, SharedTeacher
from opd_ray.cluster.session import RaySession
from opd_ray.config.schema import Config
from opd_ray.config.teacher import MAIN, TeacherSettings, paths_of
from opd_ray.errors import ConfigError
from opd_ray.preflight.config import check_config
from opd_ray.preflight.models import check_models, own_topk
from opd_ray.preflight.routes import name_problems
from opd_ray.signals import stop_as_interrupt
from opd_ray.types import TeacherInfo


@dataclass(frozen=True)
class Serving:
    """How a teacher is served."""

    name: str
    namespace: str
    teacher: str = MAIN  # a name in the config's teachers, or its section teacher
    replicas: int | None = None  # None: the config's
    detach: bool = False
    every_s: float = 10.0  # seconds between two lines of throughput


def serve_teacher(config: Config, serving: Serving) -> int:
    """Start a configured teacher as a named actor; report its throughput until Ctrl-C.

    Returns the exit code.

    Raises:
        OpdError: bad input, no cluster, a name that is taken, or a teacher that does not come up.
    """
    config = _checked(config, serving.teacher)
    pairing = check_models(config)
    with RaySession(config.cluster) as session:
        cores = max(node.cores for node in session.cluster().nodes)
        settings = config.teacher_set.first
        replicas = serving.replicas or settings.replicas
        threads = settings.threads or max(1, cores // replicas)
        settings = replace(settings, replicas=replicas, threads=threads)
        actor = _start(serving, settings, pairing.vocab_size, own_topk(config))
        try:
            with stop_as_interrupt():
                info = _started(actor, serving, settings, config.cluster.start_timeout_s)
                print(
                    f"{serving.name} serves {info.name} ({settings.kind}, {info.vocab_size} "
                    f"tokens, context {info.context_length}) from {settings.replicas} replicas; "
                    f"runs ask it with teacher.kind=actor teacher.actor_name={serving.name} "
                    f"teacher.actor_namespace={serving.namespace}",
                    flush=True,
                )
                if not serving.detach:
                    _report(actor, serving)
        except BaseException as error:
            ray.kill(actor)
            if not isinstance(error, KeyboardInterrupt):
                raise
            print(f"{serving.name} stopped", flush=True)
    return 0


def stop_teacher(config: Config, name: str, namespace: str) -> int:
    """End a teacher that is served; returns the exit code.

    Raises:
        ConfigError: no such teacher runs in the cluster.
    """
    _require_cluster(config)
    with RaySession(config.cluster):
        try:
            actor = ray.get_actor(name, namespace=namespace)
        except ValueError as error:
            raise ConfigError(
                f"--name {name}: no such actor runs in the Ray namespace {namespace!r}"
            ) from error
        # Its replicas belong to it: they end with it.
        ray.kill(actor)
    print(f"{name} stopped")
    return 0


def throughput(before: ServingStats, now: ServingStats, seconds: float) -> str:
    """One line on what happened between two accounts."""
    tokens, rollouts = now.tokens - before.tokens, now.rollouts - before.rollouts
    busy = now.busy_seconds - before.busy_seconds
    return (
        f"{tokens / seconds:,.0f} tokens/s, busy {min(1.0, busy / seconds):.0%}; "
        f"{rollouts:,} rollouts ({now.rollouts:,} in all); waiting: {now.waiting_calls} calls, "
        f"{now.waiting_tokens:,} tokens"
    )


def _checked(config: Config, name: str) -> Config:
    """The config with the teacher to be served, whoever else a run of it would ask.

    Raises:
        ConfigError: no such teacher, or one that cannot be served.
    """
    if unclear := name_problems(config):
        raise ConfigError("\n".join(unclear))
    teachers = config.teacher_set
    if name not in teachers.named:
        known = ", ".join(teachers.named)
        raise ConfigError(f"--teacher {name}: no such teacher; there is {known}")
    config = config.with_teachers(teachers.only(name))
    teacher = config.teacher_set.first
    key, kind = teacher.key, teacher.kind
    if teacher.traits.of_a_run:
        raise ConfigError(
            f"{key}.kind = {kind!r}: this kind belongs to a run; serve the models themselves "
            f"({key}.kind=hf {key}.path=FOLDER)"
        )
    check_config(config)
    _require_cluster(config)
    if teacher.traits.asks_cluster:
        raise ConfigError(
            f"{key}.kind = {kind!r}: that is how a run asks a teacher that is served; give the "
            f"kind of the teacher itself ({key}.kind=hf {key}.actor_name=null)"
        )
    return config


def _require_cluster(config: Config) -> None:
    if config.cluster.address is None:
        raise ConfigError(
            "cluster.address = null: a teacher is served in a cluster that runs already; use "
            "cluster.address=auto, or HOST:PORT"
        )


def _start(serving: Serving, settings: TeacherSettings, vocab_size: int, own_topk: int) -> Any:
    front: Any = ray.remote(SharedTeacher)
    try:
        return front.options(
            name=serving.name,
            namespace=serving.namespace,
            lifetime="detached",
            num_cpus=0,
            max_concurrency=MAX_CALLS,
            # Where relative paths begin; its replicas inherit it.
            runtime_env={"env_vars": folder_variables(paths_of(settings))},
        ).remote(settings, vocab_size, own_topk)
    except ValueError as error:
        raise ConfigError(
            f"--name {serving.name}: an actor of that name runs in the Ray namespace "
            f"{serving.namespace!r} already; end it with --stop, or choose another name"
        ) from error


def _started(
    actor: Any, serving: Serving, settings: TeacherSettings, timeout_s: float
) -> TeacherInfo:
    """What the teacher says of itself once every replica has loaded."""
    reference = actor.ready.remote()
    ready, _ = ray.wait([reference], timeout=timeout_s)
    if not ready:
        raise TeacherError(
            f"{serving.name}: not ready after {timeout_s:g} s: either the cluster has no room for "
            f"{settings.replicas} replicas with {settings.cpus_per_replica:g} CPUs and "
            f"{settings.gpus_per_replica:g} GPUs each (`ray status` tells), or loading takes "
            "longer: raise cluster.start_timeout_s"
        )
    return cast(TeacherInfo, _ask(reference, serving.name))


def _report(actor: Any, serving: Serving) -> None:
    """Print the throughput every so often, for ever."""
    before: ServingStats = _ask(actor.stats.remote(), serving.name)
    begin = time.monotonic()
    while True:
        time.sleep(serving.every_s)
        now: ServingStats = _ask(actor.stats.remote(), serving.name)
        end = time.monotonic()
        print(throughput(before, now, end - begin), flush=True)
        before, begin = now, end


def _ask(reference: Any, name: str) -> Any:
    try:
        return ray.get(reference)
    except (RayTaskError, RayActorError) as error:
        raise TeacherError(f"{name}: {error}") from error
