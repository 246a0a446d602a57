"""What no teacher can have: kinds, signals and losses that do not go together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from actors.teacher.kinds.custom_class import find_teacher_class
from opd_ray.config.choices import CacheMode, PlacementChoice, Scoring, SignalChoice
from opd_ray.config.keys import shown
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TRAITS, TeacherKind, TeacherSettings
from opd_ray.errors import ConfigError
from opd_ray.types import Divergence


def teacher_problems(config: Config, teacher: TeacherSettings) -> Iterator[str]:
    """What one teacher of a run cannot have; its ranges are checked elsewhere."""
    yield from _kind_problems(teacher)
    yield from _own_key_problems(teacher)
    yield from _gpu_problems(config, teacher)
    if teacher.kind == TeacherKind.class_ and teacher.class_path:
        # The user's class is looked up and held against its arguments; nothing of it is called.
        try:
            find_teacher_class(teacher)
        except ConfigError as error:
            yield str(error)
    if teacher.traits.asks_cluster and config.cluster.address is None:
        yield (
            f"cluster.address = null with {teacher.key}.kind = {teacher.kind!r}: a Ray that starts "
            "with the run has no such actor; use auto, or HOST:PORT of the cluster it runs in"
        )
    yield from _url_problems(teacher)
    yield from _cache_problems(teacher)


def _kind_problems(teacher: TeacherSettings) -> Iterator[str]:
    key, traits = teacher.key, teacher.traits
    if traits.needs:
        name, what = traits.needs
        if not getattr(teacher, name):
            yield f"{key}.{name} = null: kind {teacher.kind} needs {what}"
    if teacher.signal not in traits.signals:
        yield (
            f"teacher.signal = {teacher.signal} with {key}.kind = {teacher.kind}: it gives none; "
            f"use teacher.signal=topk, or {key}.kind=hf"
        )


def _own_key_problems(teacher: TeacherSettings) -> Iterator[str]:
    """Keys that mean something to another kind alone."""
    key = teacher.key
    for kind, traits in TRAITS.items():
        for name in traits.own_keys:
            value = getattr(teacher, name)
            if (value or value == 0) and teacher.kind != kind:
                yield (
                    f"{key}.{name} = {shown(value)} with {key}.kind = {teacher.kind!r}: it "
                    f"belongs to {key}.kind={kind}; set that, or leave it out"
                )


def _gpu_problems(config: Config, teacher: TeacherSettings) -> Iterator[str]:
    key, traits = teacher.key, teacher.traits
    gpus, split = teacher.gpus_per_replica, teacher.tensor_parallel_size
    if gpus > traits.most_gpus:
        yield (
            f"{key}.gpus_per_replica = {gpus:g} with {key}.kind = {teacher.kind!r}: "
            f"{traits.gpu_remedy.format(key=key)}"
        )
    shares_one = config.cluster.placement is PlacementChoice.shared and gpus < 1 and split == 1
    if traits.vllm_engine and gpus and gpus != split and not shares_one:
        yield (
            f"{key}.gpus_per_replica = {gpus:g} with {key}.tensor_parallel_size = {split}: make "
            "them equal"
        )


def signal_problems(config: Config) -> Iterator[str]:
    """Losses and scores that the signal, which is one for all teachers, does not allow."""
    teacher, loss = config.teacher_set.first, config.loss
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
    if loss.support is not None and teacher.signal is not SignalChoice.topk:
        yield (
            f"loss.support = {loss.support} with teacher.signal = {teacher.signal}: it chooses the "
            "tokens of the topk signal; use teacher.signal=topk, or leave it out (null)"
        )
    tempered = loss.temperature > 0 and loss.temperature != 1
    if tempered and teacher.signal is not SignalChoice.hidden:
        yield (
            f"loss.temperature = {loss.temperature:g} with teacher.signal = {teacher.signal}: "
            "tempering needs the whole distribution; use 1, or the hidden signal"
        )
    if loss.divergence is Divergence.jsd and not 0 < loss.beta < 1:
        yield f"loss.beta = {loss.beta:g}: the JSD needs a weight between 0 and 1, both excluded"
    if config.scores_exactly and teacher.signal is not SignalChoice.hidden:
        exact, streamed = "scoring = exact", "scoring=streamed"
        if config.scoring is not Scoring.exact:
            exact, streamed = "tip.rescore = true", "tip.rescore=false"
        yield (
            f"{exact} with teacher.signal = {teacher.signal}: exact scores need the "
            f"teacher's whole distribution; use teacher.signal=hidden, or {streamed}"
        )


def _url_problems(teacher: TeacherSettings) -> Iterator[str]:
    if not teacher.traits.asks_server:
        return
    key, parts = teacher.key, urlsplit(teacher.url or "")
    if parts.username or parts.password or parts.query:
        # The value is not shown: it may hold a key.
        yield (
            f"{key}.url: it carries a user, a password or a query; put the key into an "
            f"environment variable, and its name into {key}.api_key_env"
        )
    elif teacher.url and (parts.scheme not in ("http", "https") or not parts.hostname):
        yield f"{key}.url = {teacher.url!r}: write it as http://HOST:8000/v1 or https://HOST/v1"
    if teacher.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", teacher.api_key_env):
        # The value is not shown: it may be the key itself.
        yield (
            f"{key}.api_key_env: this is no name of an environment variable; put the key into "
            "one, and the variable's name here"
        )


def _cache_problems(teacher: TeacherSettings) -> Iterator[str]:
    key, cache, folder = teacher.key, teacher.cache, teacher.cache_dir
    if cache is CacheMode.off:
        if folder:
            yield (
                f"{key}.cache_dir = {folder!r} with {key}.cache = off: set {key}.cache to record, "
                "replay or replay_or_ask, or leave the folder out"
            )
        return
    if teacher.traits.mixes_members:
        yield (
            f"{key}.cache = {cache} with {key}.kind = {teacher.kind!r}: give each member a cache "
            "of its own, in teachers"
        )
    if teacher.follow_decay is not None:
        yield (
            f"{key}.cache = {cache} with {key}.follow_decay = {teacher.follow_decay:g}: the "
            "answers change with every step; set it to off"
        )
    if not folder:
        yield f"{key}.cache_dir = null with {key}.cache = {cache}: it needs a folder"
    elif cache is CacheMode.replay and not Path(folder).is_dir():
        yield (
            f"{key}.cache_dir = {folder!r}: no such folder, so there is nothing to replay; record "
            f"first with {key}.cache=record"
        )
