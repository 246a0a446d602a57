"""What no teacher can have: kinds, signals and losses that do not go together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from opd_ray.config.choices import CacheMode, Scoring, SignalChoice
from opd_ray.config.keys import shown
from opd_ray.config.schema import Config
from opd_ray.config.teacher import KIND_KEYS, MODEL_KINDS, TEACHER_KINDS, TeacherSettings
from opd_ray.errors import ConfigError
from opd_ray.types import Divergence


def teacher_problems(config: Config) -> Iterator[str]:
    """Every problem of the section ``teacher`` and of what depends on it."""
    yield from _kind_problems(config)
    yield from _signal_problems(config)
    yield from _own_teacher_problems(config)
    yield from url_problems(config.teacher)
    yield from cache_problems(config.teacher)


def _kind_problems(config: Config) -> Iterator[str]:
    teacher = config.teacher
    if teacher.kind not in TEACHER_KINDS:
        yield f"teacher.kind = {teacher.kind!r}: there is {', '.join(TEACHER_KINDS)}"
    if teacher.kind in MODEL_KINDS and not teacher.path:
        yield f"teacher.path = null: kind {teacher.kind} needs a Hugging Face folder or hub name"
    if teacher.kind in ("vllm", "http") and teacher.signal is SignalChoice.hidden:
        yield (
            f"teacher.signal = hidden with teacher.kind = {teacher.kind}: it gives none; use "
            "teacher.signal=topk, or teacher.kind=hf"
        )
    split = teacher.tensor_parallel_size
    if teacher.kind == "vllm" and teacher.gpus_per_replica and teacher.gpus_per_replica != split:
        yield (
            f"teacher.gpus_per_replica = {teacher.gpus_per_replica:g} with "
            f"teacher.tensor_parallel_size = {split}: make them equal"
        )
    if teacher.kind in ("hf", "self", "ensemble") and teacher.gpus_per_replica > 1:
        yield (
            f"teacher.gpus_per_replica = {teacher.gpus_per_replica:g}: kind {teacher.kind} runs on "
            "one GPU; use at most 1, and more teacher.replicas"
        )
    if teacher.cache is not CacheMode.off and teacher.kind == "ensemble":
        yield (
            f"teacher.cache = {teacher.cache} with teacher.kind = 'ensemble': give each member a "
            "cache of its own, in teachers"
        )
    if teacher.cache is not CacheMode.off and teacher.follow_decay is not None:
        yield (
            f"teacher.cache = {teacher.cache} with teacher.follow_decay = "
            f"{teacher.follow_decay:g}: the answers change with every step; set it to off"
        )
    decay = teacher.follow_decay
    if decay is not None and not 0 <= decay < 1:
        yield (
            f"teacher.follow_decay = {decay:g}: must lie in [0, 1); for a teacher that stays as it "
            "is leave it out"
        )


def _signal_problems(config: Config) -> Iterator[str]:
    teacher, loss = config.teacher, config.loss
    if teacher.signal is SignalChoice.sampled and loss.divergence is not Divergence.reverse_kl:
        yield (
            f"loss.divergence = {loss.divergence} with teacher.signal = sampled: the sampled token "
            "alone gives the reverse KL only; use loss.divergence=reverse_kl or the topk signal"
        )
    if teacher.signal is SignalChoice.sampled and config.eval.kl_prompts > 0:
        yield (
            f"eval.kl_prompts = {config.eval.kl_prompts} with teacher.signal = sampled: the "
            "sampled token alone gives no held-out divergence; use eval.kl_prompts=0, or the topk "
            "signal"
        )
    tempered = loss.temperature > 0 and loss.temperature != 1
    if tempered and teacher.signal is not SignalChoice.hidden:
        yield (
            f"loss.temperature = {loss.temperature:g} with teacher.signal = {teacher.signal}: "
            "tempering needs the whole distribution; use 1, or the hidden signal"
        )
    if loss.divergence is Divergence.jsd and not 0 < loss.beta < 1:
        yield f"loss.beta = {loss.beta:g}: the JSD needs a weight between 0 and 1, both excluded"
    if config.scoring is Scoring.exact and teacher.signal is not SignalChoice.hidden:
        yield (
            f"scoring = exact with teacher.signal = {teacher.signal}: exact scores need the "
            "teacher's whole distribution; use teacher.signal=hidden, or scoring=streamed"
        )


def _own_teacher_problems(config: Config) -> Iterator[str]:
    """The user's own teacher: an importable class, or an actor in a cluster that runs already."""
    teacher = config.teacher
    for kind, keys in KIND_KEYS.items():
        for key in keys:
            value = getattr(teacher, key)
            if (value or value == 0) and teacher.kind != kind:
                yield (
                    f"teacher.{key} = {shown(value)} with teacher.kind = {teacher.kind!r}: it "
                    f"belongs to teacher.kind={kind}; set that, or leave it out"
                )
    if teacher.kind == "class":
        if not teacher.class_path:
            yield "teacher.class_path = null: kind class needs package.module:Class"
            return
        from actors.teacher.kinds.custom_class import find_teacher_class

        try:
            find_teacher_class(teacher.class_path, teacher.arguments)
        except ConfigError as error:
            yield str(error)
    if teacher.kind == "actor":
        if not teacher.actor_name:
            yield "teacher.actor_name = null: kind actor needs the name of a running Ray actor"
        if config.cluster.address is None:
            yield (
                "cluster.address = null with teacher.kind = 'actor': a Ray that starts with the "
                "run has no such actor; use auto, or HOST:PORT of the cluster it runs in"
            )
        if teacher.gpus_per_replica:
            yield (
                f"teacher.gpus_per_replica = {teacher.gpus_per_replica:g} with teacher.kind = "
                "'actor': a replica only passes requests on; set it to 0"
            )


def url_problems(teacher: TeacherSettings) -> Iterator[str]:
    """Of the keys of kind http."""
    if teacher.kind != "http":
        return
    if not teacher.url:
        yield "teacher.url = null: kind http needs the base URL of a server, http://HOST:8000/v1"
    else:
        yield from _address_problems(teacher.url)
    if teacher.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", teacher.api_key_env):
        # The value is not shown: it may be the key itself.
        yield (
            "teacher.api_key_env: this is no name of an environment variable; put the key into "
            "one, and the variable's name here"
        )
    if teacher.gpus_per_replica:
        yield (
            f"teacher.gpus_per_replica = {teacher.gpus_per_replica:g} with teacher.kind = 'http': "
            "a replica only asks the server; set it to 0"
        )


def _address_problems(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        # The value is not shown: it may hold a key.
        yield (
            "teacher.url: it carries a user, a password or a query; put the key into an "
            "environment variable, and its name into teacher.api_key_env"
        )
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        yield f"teacher.url = {url!r}: write it as http://HOST:8000/v1 or https://HOST/v1"


def cache_problems(teacher: TeacherSettings) -> Iterator[str]:
    """Of the keys ``cache`` and ``cache_dir``."""
    if teacher.cache is CacheMode.off:
        if teacher.cache_dir:
            yield (
                f"teacher.cache_dir = {teacher.cache_dir!r} with teacher.cache = off: set "
                "teacher.cache to record, replay or replay_or_ask, or leave the folder out"
            )
    elif not teacher.cache_dir:
        yield f"teacher.cache_dir = null with teacher.cache = {teacher.cache}: it needs a folder"
    elif teacher.cache is CacheMode.replay and not Path(teacher.cache_dir).is_dir():
        yield (
            f"teacher.cache_dir = {teacher.cache_dir!r}: no such folder, so there is nothing to "
            "replay; record first with teacher.cache=record"
        )
