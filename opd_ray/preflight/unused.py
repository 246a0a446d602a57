"""Options that a configuration sets and that have no effect beside its others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from opd_ray.config.choices import LrSchedule, PlacementChoice, SignalChoice
from opd_ray.config.data import DataKind, DataSettings
from opd_ray.config.schema import Config
from opd_ray.config.teacher import MAIN, TeacherSettings
from opd_ray.tip import find_rule
from opd_ray.tip.normalise import Normalisation, NormaliseOver
from opd_ray.tip.rule import Keeps
from opd_ray.tip.select import RhoSchedule, SelectBy, ShareOf, share_counts
from opd_ray.types import Divergence


def unused_options(config: Config) -> list[str]:
    """A line for each that is not at its default and does nothing; of a valid configuration."""
    return [
        *_cluster(config),
        *_student(config),
        *_rollout(config),
        *_environment(config),
        *_teachers(config),
        *_loss_and_filter(config),
        *_trainer(config),
        *_evaluation(config),
        *_report(config),
        *(line for key, data in config.data_sections.items() for line in _data(key, data)),
    ]


def _set(
    section: str,
    settings: Any,
    names: Iterable[str],
    because: str,
    among: Collection[str] | None = None,
) -> Iterator[str]:
    """The keys of ``names``, and ``among`` these, that are not at their defaults."""
    default = {f.name: f.default for f in fields(settings)}
    for name in names:
        value = getattr(settings, name)
        if value != default[name] and (among is None or name in among):
            yield f"{section}.{name} = {value} has no effect: {because}"


def _cluster(config: Config) -> Iterator[str]:
    cluster = config.cluster
    if cluster.address is not None:
        because = f"the Ray at cluster.address = {cluster.address!r} runs already"
        yield from _set("cluster", cluster, ("num_cpus", "object_store_bytes"), because)
    if cluster.placement is not PlacementChoice.shared:
        because = f"cluster.placement is {cluster.placement}"
        yield from _set("cluster", cluster, ("teacher_beside",), because)


def _student(config: Config) -> Iterator[str]:
    lora = config.student.lora
    if not lora.on:
        because = "student.lora.rank is 0"
        yield from _set("student.lora", lora, ("alpha", "base", "export"), because)
        if lora.target_modules:
            yield f"student.lora.target_modules = {lora.target_modules} has no effect: {because}"
        yield from _set("sync", config.sync, ("lora",), because)
    elif not config.run.export_at_end:
        yield from _set("student.lora", lora, ("export",), "run.export_at_end is false")


def _rollout(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.temperature == 0:
        yield from _set("rollout", rollout, ("top_p", "top_k"), "rollout.temperature is 0")
    if rollout.gpus_per_actor:
        yield from _set("rollout", rollout, ("kv_cache_bytes",), "it is of engines on CPUs")
    else:
        names = ("gpu_memory_utilization", "enforce_eager")
        yield from _set("rollout", rollout, names, "rollout.gpus_per_actor is 0")


def _environment(config: Config) -> Iterator[str]:
    """Of one that is not there; with it, limits that another comes before."""
    settings = config.environment
    if not config.environment_set.any:
        names = [f.name for f in fields(settings) if f.name not in ("path", "arguments")]
        yield from _set("environment", settings, names, "environment.path is null")
        return
    written = config.environment_set.concurrent(config.rollout.max_num_seqs)
    if written < config.rollout.max_num_seqs:
        yield (
            f"rollout.max_num_seqs = {config.rollout.max_num_seqs} with "
            f"environment.concurrent_rollouts = {written}: an engine has no more than these under "
            "way, and so writes no more at once"
        )
    if (settings.max_turn_tokens or 0) > config.rollout.max_new_tokens:
        yield (
            f"environment.max_turn_tokens = {settings.max_turn_tokens} has no effect: "
            f"rollout.max_new_tokens = {config.rollout.max_new_tokens} bounds all turns together"
        )


def _teachers(config: Config) -> Iterator[str]:
    for one in config.teacher_set.working.values():
        for settings in one.models:
            # What a further teacher inherits is of use to the teacher that it is set for.
            own = None if settings.name == MAIN else config.teachers[settings.name]
            yield from _teacher(settings, own)
            if config.asks_trainers(settings):
                because = "the trainers compute its answers, as student.lora.rank is above 0"
                names = ("answer_timeout_s", "threads")
                yield from _set(settings.key, settings, names, because, own)


def _teacher(teacher: TeacherSettings, own: Collection[str] | None) -> Iterator[str]:
    key, traits = teacher.key, teacher.traits
    kind = f"{key}.kind is {teacher.kind}"
    if teacher.signal is not SignalChoice.topk and not traits.asks_server:
        because = f"teacher.signal is {teacher.signal}"
        yield from _set(key, teacher, ("topk",), because, own)
    if not traits.asks_server:
        asking = ("named_tokens", "concurrency", "timeout_s", "max_retries")
        yield from _set(key, teacher, asking, kind, own)
    else:
        yield from _set(key, teacher, ("answer_timeout_s",), kind, own)
    if not traits.asks_cluster:
        yield from _set(key, teacher, ("actor_namespace",), kind, own)
    if not traits.vllm_engine:
        names = ("kv_cache_bytes", "tensor_parallel_size", "gpu_memory_utilization")
        yield from _set(key, teacher, names, kind, own)
    elif teacher.gpus_per_replica:
        yield from _set(key, teacher, ("kv_cache_bytes",), "it is of engines on CPUs", own)
    else:
        because = f"{key}.gpus_per_replica is 0"
        yield from _set(key, teacher, ("gpu_memory_utilization",), because, own)
    if teacher.follow_decay is not None:
        because = "one that follows the student is not started again"
        yield from _set(key, teacher, ("max_restarts",), because, own)


def _loss_and_filter(config: Config) -> Iterator[str]:
    loss, tip = config.loss, config.tip
    if loss.divergence is not Divergence.jsd:
        yield from _set("loss", loss, ("beta",), f"loss.divergence is {loss.divergence}")
    if loss.temperature != 1:
        because = "at loss.temperature other than 1 trainers and vLLM are not compared"
        yield from _set("sync", config.sync, ("max_gap",), because)
    rule = find_rule(tip.rule)
    names: tuple[str, ...]
    if rule.keeps == Keeps.all:
        names = ("rho", "rho_schedule", "selection", "share_of")
        yield from _set("tip", tip, names, f"the rule {rule.name} keeps every token")
    elif tip.selection != SelectBy.top_share:
        names = ("rho", "rho_schedule", "share_of")
        yield from _set("tip", tip, names, f"tip.selection is {tip.selection}")
    if not config.environment_set.any:
        for name, scope in (("share_of", tip.share_of), ("normalise_over", tip.normalise_over)):
            if scope in (ShareOf.turn, NormaliseOver.turn):
                yield (
                    f"tip.{name} = turn does what rollout does: without an environment "
                    "(environment.path) every response is one turn"
                )
    if tip.rho_schedule == RhoSchedule.constant:
        names = ("rho_end", "rho_schedule_steps")
        yield from _set("tip", tip, names, "tip.rho_schedule is constant")
        if tip.selection == SelectBy.top_share and rule.keeps != Keeps.all:
            yield from _empty_share(config)
    if not config.run.lag:
        yield from _set(
            "tip", tip, ("rescore",), "run.lag is 0; scoring=exact does this without lag"
        )
    if tip.rule != "product" and not tip.overlap and ":" not in tip.rule:
        yield from _set("tip", tip, ("alpha", "gamma"), "tip.rule is not product")
    if tip.normalise_over != NormaliseOver.stream:
        because = f"tip.normalise_over is {tip.normalise_over}"
        yield from _set("tip", tip, ("stream_decay",), because)
    if tip.normalisation != Normalisation.min_max:
        because = f"tip.normalisation is {tip.normalisation}"
        yield from _set("tip", tip, ("h_clip", "divergence_clip"), because)


def _empty_share(config: Config) -> Iterator[str]:
    tip, longest = config.tip, config.rollout.max_new_tokens
    if tip.rho == 0:
        yield "tip.rho = 0: no token is kept, so the student learns nothing"
        return
    if tip.share_of == ShareOf.batch:
        return
    key, group, wider = "rollout.max_new_tokens", "response", ShareOf.batch
    turn = _longest_turn(config)
    if tip.share_of == ShareOf.turn and turn < longest:
        key, group, wider, longest = "environment.max_turn_tokens", "turn", ShareOf.rollout, turn
    if not share_counts(np.array([longest]), tip.rho)[0]:
        yield (
            f"tip.rho = {tip.rho:g} with {key} = {longest}: less than one token of a {group}, so "
            f"the student learns nothing; raise one of them, or set tip.share_of={wider.value}"
        )


def _longest_turn(config: Config) -> int:
    """Tokens of the longest turn that any prompt's student may write; without one, a response."""
    longest = config.rollout.max_new_tokens
    environments = config.environment_set
    return max(
        longest if one.path is None else min(longest, one.max_turn_tokens or longest)
        for one in (environments.default, *environments.by_source.values())
    )


def _trainer(config: Config) -> Iterator[str]:
    trainer, steps = config.trainer, config.run.steps
    if trainer.lr_schedule is LrSchedule.constant:
        yield from _set("trainer", trainer, ("min_lr_ratio",), "trainer.lr_schedule is constant")
    if not trainer.gradient_checkpointing:
        because = "trainer.gradient_checkpointing is false"
        yield from _set("trainer", trainer, ("recomputed_layers",), because)
    if trainer.answer_timeout_s >= config.cluster.stall_timeout_s:
        yield from _set(
            "trainer",
            trainer,
            ("answer_timeout_s",),
            f"cluster.stall_timeout_s = {config.cluster.stall_timeout_s:g} ends the run before",
        )
    if trainer.learning_rate == 0 and steps:
        yield "trainer.learning_rate = 0: the student learns nothing"
    elif trainer.warmup_steps > steps > 0:
        yield (
            f"trainer.warmup_steps = {trainer.warmup_steps} with run.steps = {steps}: the run ends "
            f"before the learning rate has come to trainer.learning_rate = "
            f"{trainer.learning_rate:g}"
        )


def _evaluation(config: Config) -> Iterator[str]:
    evaluation = config.eval
    if not evaluation.tasks:
        yield from _set("eval", evaluation, ("teacher_accuracy",), "eval.tasks is empty")
    for place, task in config.named_tasks.items():
        if not task.samples:
            yield from _set(place, task, ("temperature", "top_p"), f"{place}.samples is 0")


def _report(config: Config) -> Iterator[str]:
    report = config.report
    if not report.close_ups:
        yield from _set("report", report, ("rollouts", "tokens"), "report.close_ups is 0")
    elif not report.rollouts:
        yield from _set("report", report, ("tokens",), "report.rollouts is 0")
    if not config.eval.tasks:
        yield from _set("report", report, ("problems",), "eval.tasks is empty")


def _data(section: str, data: DataSettings) -> Iterator[str]:
    kind = f"{section}.kind is {data.kind.value}"
    if data.kind is not DataKind.datasets:
        yield from _set(section, data, ("subset", "split"), kind)
    if data.kind is not DataKind.python and data.arguments:
        yield f"{section}.arguments has no effect: {kind}"
    if data.kind is DataKind.chain_sum:
        yield from _set(section, data, ("path",), kind)
    if section != "data":
        because = "the problems of a task are asked in the order of their source"
        yield from _set(section, data, ("seed",), because)
    elif not data.shuffle:
        yield from _set(section, data, ("seed",), f"{section}.shuffle is false")
