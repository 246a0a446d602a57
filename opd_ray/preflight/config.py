"""Values and combinations of values that no run can have, found before anything is loaded.

Each problem names the key, its value and what to do. What depends on the cluster is checked by
opd_ray.cluster.placement, what depends on both tokenizers by opd_ray.preflight.pairing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from opd_ray.config.choices import CacheMode, SignalChoice, SyncBackend
from opd_ray.config.keys import shown
from opd_ray.config.resolved_teachers import models_of
from opd_ray.config.schema import Config, EvalTask
from opd_ray.config.teacher import MODEL_KINDS, model_path
from opd_ray.errors import ConfigError
from opd_ray.models.shape import ModelShapeError, config_json
from opd_ray.preflight.routes import name_problems, teachers_problems
from opd_ray.tip import TipFilter

_AT_LEAST = {
    0: (
        "run.steps run.checkpoint_every rollout.cpus_per_actor rollout.gpus_per_actor "
        "rollout.threads rollout.temperature rollout.top_k teacher.cpus_per_replica "
        "teacher.gpus_per_replica teacher.threads teacher.max_retries teacher.max_restarts "
        "trainer.cpus_per_rank "
        "trainer.threads trainer.learning_rate "
        "trainer.warmup_steps trainer.weight_decay trainer.max_grad_norm eval.every eval.kl_prompts"
    ),
    1: (
        "run.keep_checkpoints cluster.num_cpus cluster.object_store_bytes student.context_length "
        "rollout.actors rollout.tensor_parallel_size rollout.prompts_per_step "
        "rollout.samples_per_prompt rollout.max_new_tokens rollout.record_topk "
        "rollout.max_num_seqs rollout.max_num_batched_tokens rollout.kv_cache_bytes "
        "teacher.replicas teacher.topk teacher.batch_tokens teacher.kv_cache_bytes "
        "teacher.tensor_parallel_size teacher.store_bytes teacher.named_tokens "
        "teacher.concurrency loss.chunk_rows "
        "trainer.ranks trainer.micro_batch_tokens sync.chunk_bytes"
    ),
}
_ABOVE_ZERO = (
    "cluster.start_timeout_s cluster.stall_timeout_s rollout.top_p rollout.gpu_memory_utilization "
    "teacher.gpu_memory_utilization teacher.timeout_s loss.temperature "
    "trainer.adam_eps sync.max_gap"
)
_AT_MOST_ONE = (
    "rollout.top_p rollout.gpu_memory_utilization teacher.gpu_memory_utilization "
    "trainer.gpus_per_rank trainer.min_lr_ratio"
)


def check_config(config: Config) -> None:
    """Raise ConfigError that lists every problem of ``config``, one a line."""
    problems = config_problems(config)
    if problems:
        raise ConfigError("\n".join(problems))


def config_problems(config: Config) -> list[str]:
    """Every problem of ``config``; an empty list means that a run may start."""
    if unclear := name_problems(config):
        return unclear
    return [
        *(text for text in _range_problems(config) if not text.startswith("teacher.")),
        *_run_problems(config),
        *_length_problems(config),
        *_rollout_problems(config),
        *teachers_problems(config, _range_problems),
        *_rule_problems(config),
        *_vocabulary_problems(config),
        *_trainer_problems(config),
        *data_problems(config),
        *eval_problems(config),
        *teacher_accuracy_problems(config),
    ]


def check_evaluation(config: Config) -> None:
    """Raise ConfigError for what an evaluation without teacher and trainers cannot have."""
    problems = [
        *_range_problems(config),
        *_length_problems(config),
        *_rollout_problems(config),
        *_top_k_problems([("student.path", config.student.path)], ["rollout.record_topk"], config),
        *data_problems(config),
        *eval_problems(config),
    ]
    if not config.eval.tasks:
        problems.append("eval.tasks is empty: name at least one task to evaluate on")
    if problems:
        raise ConfigError("\n".join(problems))


def _range_problems(config: Config) -> Iterator[str]:
    for least, keys in _AT_LEAST.items():
        for key in keys.split():
            value = _value(config, key)
            if value is not None and not least <= value < math.inf:
                yield f"{key} = {value}: must be at least {least}"
    for key in _ABOVE_ZERO.split():
        if not 0 < _value(config, key) < math.inf:
            yield f"{key} = {_value(config, key)}: must be above 0"
    for key in _AT_MOST_ONE.split():
        if _value(config, key) > 1:
            yield f"{key} = {_value(config, key)}: must be at most 1"
    for key in ("trainer.gpus_per_rank", "trainer.min_lr_ratio"):
        if _value(config, key) < 0:
            yield f"{key} = {_value(config, key)}: must lie in [0, 1]"
    for key in ("trainer.adam_beta1", "trainer.adam_beta2"):
        if not 0 <= _value(config, key) < 1:
            yield f"{key} = {_value(config, key)}: must lie in [0, 1)"


def _run_problems(config: Config) -> Iterator[str]:
    resume = config.run.resume
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        yield f"run.resume = {resume!r}: use auto, never, or the folder of a checkpoint"
    if config.run.wandb_project is not None and find_spec("wandb") is None:
        yield (
            f"run.wandb_project = {config.run.wandb_project!r}: wandb is not installed; "
            "pip install wandb, or set it to null"
        )
    on_gpus = config.rollout.gpus_per_actor > 0 and config.trainer.gpus_per_rank > 0
    if config.sync.backend is SyncBackend.nccl and not on_gpus:
        yield (
            f"sync.backend = nccl with rollout.gpus_per_actor = {config.rollout.gpus_per_actor} "
            f"and trainer.gpus_per_rank = {config.trainer.gpus_per_rank}: NCCL joins GPUs; use "
            "sync.backend=ray, or give both GPUs"
        )


def _length_problems(config: Config) -> Iterator[str]:
    context, longest = config.student.context_length, config.rollout.max_new_tokens
    pairs = [("data", config.data, "rollout", longest)]
    for place, task in named_tasks(config):
        if task.max_new_tokens is None:
            pairs.append((f"{place}.data", task.data, "rollout", longest))
        else:
            pairs.append((f"{place}.data", task.data, place, task.max_new_tokens))
    for section, data, owner, response in pairs:
        if data.max_prompt_tokens + response > context:
            yield (
                f"{section}.max_prompt_tokens = {data.max_prompt_tokens} with "
                f"{owner}.max_new_tokens = {response}: together more than "
                f"student.context_length = {context}; lower one of them, or raise the context if "
                "the model allows it"
            )


def _rollout_problems(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.temperature == 0 and rollout.samples_per_prompt > 1:
        yield (
            f"rollout.samples_per_prompt = {rollout.samples_per_prompt} with rollout.temperature = "
            "0: greedy responses to one prompt are all the same; raise the temperature or ask for 1"
        )
    split = rollout.tensor_parallel_size
    if rollout.gpus_per_actor and rollout.gpus_per_actor != split:
        yield (
            f"rollout.gpus_per_actor = {rollout.gpus_per_actor} with rollout.tensor_parallel_size "
            f"= {split}: make them equal, more GPUs of an actor would idle"
        )


def _rule_problems(config: Config) -> Iterator[str]:
    """A rule that is not there, or does not go with the selection."""
    try:
        TipFilter(config.tip)
    except ConfigError as error:
        yield str(error)
    except ValueError as error:
        yield f"tip.rule = {config.tip.rule!r}: {error}"


def _vocabulary_problems(config: Config) -> Iterator[str]:
    """Missing models, and top-k above the rows that a model has."""
    models = [("student.path", config.student.path)]
    models += [
        (f"{key}.path", path)
        for key, settings in models_of(config).items()
        if settings.kind in MODEL_KINDS and (path := model_path(settings))
    ]
    topks = ["rollout.record_topk"]
    if config.teacher.signal is SignalChoice.topk:
        topks.append("teacher.topk")
    yield from _top_k_problems(models, topks, config)


def _top_k_problems(
    models: Sequence[tuple[str, str]], topks: Sequence[str], config: Config
) -> Iterator[str]:
    found: dict[str, str] = {}
    for key, path in models:
        try:
            described = config_json(path)
        except ModelShapeError as error:
            yield f"{key} = {path!r}: {str(error).removeprefix(f'{path}: ')}"
            continue
        rows = (described or {}).get("vocab_size")
        for topk in topks:
            value = _value(config, topk)
            if rows is not None and value > rows:
                found[topk] = (
                    f"{topk} = {value}: above the {rows} tokens of {key} = {path!r}; lower it"
                )
    yield from found.values()


def _trainer_problems(config: Config) -> Iterator[str]:
    trainer = config.trainer
    if trainer.zero_stage not in range(4):
        yield f"trainer.zero_stage = {trainer.zero_stage}: there are the stages 0, 1, 2 and 3"
    if trainer.offload_optimizer and not trainer.gpus_per_rank:
        yield (
            "trainer.offload_optimizer = true with trainer.gpus_per_rank = 0: without a GPU the "
            "optimizer is in main memory anyway; set it to false"
        )
    if trainer.offload_optimizer and trainer.zero_stage == 0:
        yield (
            "trainer.offload_optimizer = true with trainer.zero_stage = 0: only sharded state is "
            "offloaded; use trainer.zero_stage 1, 2 or 3"
        )


def _value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def data_problems(config: Config) -> Iterator[str]:
    """Every problem of the prompts, for training and for evaluation."""
    sections = [
        ("data", config.data),
        *((f"{p}.data", task.data) for p, task in named_tasks(config)),
    ]
    for section, data in sections:
        try:
            data.validate(section)
        except ConfigError as error:
            yield str(error)


def eval_problems(config: Config) -> Iterator[str]:
    """Every other problem of the tasks of the section ``eval``."""
    from opd_ray.tasks import get_task

    names = Counter(task.name for task in config.eval.tasks)
    yield from (
        f"eval.tasks: {count} tasks are called {name!r}; give each its own name"
        for name, count in names.items()
        if count > 1
    )
    for place, task in named_tasks(config):
        try:
            get_task(task.task)
        except ConfigError as error:
            yield f"{place}.{error}"
        for name, least in (("problems", 1), ("samples", 0), ("max_new_tokens", 1)):
            value = getattr(task, name)
            if value is not None and value < least:
                yield f"{place}.{name} = {shown(value)}: must be at least {least}"
        if not task.greedy and not task.samples:
            yield f"{place}.samples = 0 with greedy = false: nothing is asked; set one of them"
        if task.samples and task.temperature <= 0:
            yield (
                f"{place}.temperature = {task.temperature:g} with samples = {task.samples}: they "
                "need a temperature above 0; for greedy decoding alone set samples to 0"
            )
        if not 0 < task.top_p <= 1:
            yield f"{place}.top_p = {task.top_p:g}: must lie in (0, 1]"


def teacher_accuracy_problems(config: Config) -> Iterator[str]:
    """Accuracy asked of a teacher that cannot write."""
    if config.eval.teacher_accuracy and config.teacher.kind not in MODEL_KINDS:
        yield (
            f"eval.teacher_accuracy = true with teacher.kind = {config.teacher.kind!r}: only a "
            "teacher of kind hf or vllm can write answers; set it to false"
        )
    elif config.eval.teacher_accuracy and config.teacher.cache is CacheMode.replay:
        yield (
            "eval.teacher_accuracy = true with teacher.cache = replay: no teacher "
            "is there to write answers; set it to false"
        )
    elif config.eval.teacher_accuracy and not config.teacher.path:
        yield (
            "eval.teacher_accuracy = true with teacher.path = null: it is the section teacher that "
            "writes answers; set it to false"
        )


def named_tasks(config: Config) -> list[tuple[str, EvalTask]]:
    """The tasks of the evaluation, each with the key that it stands under."""
    return [(f"eval.tasks[{number}]", task) for number, task in enumerate(config.eval.tasks)]
