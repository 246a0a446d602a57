"""The models of a run before any is loaded: do they pair, and can a server give what is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.teacher.http.probe import Served, check_server, named_tokens
from actors.teacher.protocol import TeacherError
from opd_ray.config.choices import CacheMode, Support
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConfigError
from opd_ray.preflight.lora import layer_problems
from opd_ray.preflight.model_files import check_model_files, models_of_run
from opd_ray.preflight.pairing import Pairing, check_pairings
from opd_ray.tip import find_rule

if TYPE_CHECKING:
    pass


def check_models(config: Config) -> Pairing:
    """What student and teachers have in common.

    A teacher behind a URL is asked for all that the run needs of it.

    Raises:
        ConfigError: a model that cannot be had here, or whose weights are not all its own.
        PairingError: they cannot be student and teacher.
        TeacherError: what a server lacks.
    """
    check_model_files(config, models_of_run(config))
    if problems := [*layer_problems(config)]:
        raise ConfigError("\n".join(problems))
    pairing = check_pairings(config)
    for settings in asked_servers(config):
        ask_server(config, settings, pairing.tokenizer, pairing.vocab_size)
    return pairing


def ask_server(
    config: Config, settings: TeacherSettings, tokenizer: Any, vocab_size: int
) -> Served:
    """What a teacher behind a URL offers, once it has given all that the run needs of it.

    Raises:
        TeacherError: what it lacks.
    """
    named = named_tokens(settings, vocab_size, own_topk(config))
    if config.support is not Support.teacher and named < vocab_size:
        raise TeacherError(
            f"loss.support = {config.support} with {settings.key}.kind = {settings.kind!r}: this "
            f"server tells of its own {named} likeliest tokens alone, and of the student's the "
            "loss needs values, not bounds: use loss.support=teacher, "
            f"{settings.key}.kind=vllm, or {settings.key}.named_tokens={vocab_size}"
        )
    return check_server(
        settings,
        tokenizer,
        vocab_size,
        context_length=config.student.context_length,
        own_topk=own_topk(config),
    )


def asked_servers(config: Config) -> list[TeacherSettings]:
    """The teachers behind a URL that a run asks."""
    return [
        model
        for model in config.teacher_set.models.values()
        if model.traits.asks_server and model.cache is not CacheMode.replay
    ]


def own_topk(config: Config) -> int:
    """k of the teacher's own top-k that the rule of the filter asks for; 0 if it asks for none."""
    rule = find_rule(config.tip.rule)
    return config.rollout.record_topk if "union_forward_kl" in rule.needs else 0
