"""Values and combinations of values that no run can have, found before anything is loaded.

Each problem names the key, its value and what to do. What depends on the cluster is checked by
opd_ray.cluster.placement, what depends on both tokenizers by opd_ray.preflight.pairing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from opd_ray.config.choices import CacheMode, SyncBackend
from opd_ray.config.ranges import range_problems
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TRAITS, model_path
from opd_ray.errors import ConfigError
from opd_ray.models.shape import ModelShapeError, config_json, described_model
from opd_ray.output.checkpoint import MANIFEST, CheckpointError
from opd_ray.output.meant import meant_checkpoint, model_advice
from opd_ray.preflight.early import early_problems
from opd_ray.preflight.environments import environment_problems, section_problems
from opd_ray.preflight.lora import lora_problems
from opd_ray.preflight.model_files import limit_problems, models_of_evaluation, models_of_run
from opd_ray.preflight.pairing import topks_in_use
from opd_ray.preflight.placement import placement_problems
from opd_ray.preflight.routes import name_problems, teachers_problems
from opd_ray.tasks import get_task
from opd_ray.tasks.environment_task import EnvironmentTask
from opd_ray.tip import TipFilter

# Sections whose numbers are checked alone; teachers, data and tasks are checked as they are used.
_SECTIONS = ("run", "cluster", "student", "rollout", "loss", "trainer", "sync", "eval", "report")


def check_config(config: Config) -> None:
    """Refuse a config that no run can have.

    Raises:
        ConfigError: lists every problem, one a line.
    """
    problems = config_problems(config)
    if problems:
        raise ConfigError("\n".join(problems))


def config_problems(config: Config) -> list[str]:
    """Every problem of ``config``; an empty list means that a run may start."""
    if unclear := [*section_problems(config), *name_problems(config)]:
        return unclear
    return [
        *_range_problems(config),
        *_date_problems(config),
        *_run_problems(config),
        *early_problems(config),
        *placement_problems(config),
        *_length_problems(config),
        *_rollout_problems(config),
        *environment_problems(config),
        *teachers_problems(config),
        *_rule_problems(config),
        *_vocabulary_problems(config),
        *limit_problems(models_of_run(config)),
        *_trainer_problems(config),
        *lora_problems(config),
        *data_problems(config),
        *eval_problems(config),
        *teacher_accuracy_problems(config),
    ]


def check_evaluation(config: Config) -> None:
    """Refuse a config that an evaluation, without teacher and trainers, cannot have.

    Raises:
        ConfigError: lists every problem, one a line.
    """
    if unclear := section_problems(config):
        raise ConfigError("\n".join(unclear))
    problems = [
        *_range_problems(config),
        *_date_problems(config),
        *range_problems("teacher", config.teacher),
        *_length_problems(config),
        *_rollout_problems(config),
        *environment_problems(config),
        *_top_k_problems(
            [("student.path", config.student.path)],
            topks_in_use(config, of_teacher=False),
        ),
        *limit_problems(models_of_evaluation(config)),
        *data_problems(config),
        *eval_problems(config),
    ]
    if not config.eval.tasks:
        problems.append("eval.tasks is empty: name at least one task to evaluate on")
    if problems:
        raise ConfigError("\n".join(problems))


def _range_problems(config: Config) -> Iterator[str]:
    for section in _SECTIONS:
        yield from range_problems(section, getattr(config, section))


def _date_problems(config: Config) -> Iterator[str]:
    try:
        _ = config.run.day
    except ValueError:
        yield f"run.date = {config.run.date!r}: no day; write it as 2026-01-31, or set it to null"


def _run_problems(config: Config) -> Iterator[str]:
    resume = config.run.resume
    if resume not in ("auto", "never") and not (Path(resume) / MANIFEST).is_file():
        yield (
            f"run.resume = {resume!r}: use auto, never, or the folder of a checkpoint"
            f"{_newest_of(Path(resume))}"
        )
    run = config.run
    for package, key, project in (
        ("wandb", "wandb_project", run.wandb_project),
        ("mlflow", "mlflow_experiment", run.mlflow_experiment),
        ("trackio", "trackio_project", run.trackio_project),
    ):
        if project is not None and find_spec(package) is None:
            yield (
                f"run.{key} = {project!r}: {package} is not installed; pip install {package}, or "
                "set it to null"
            )
    on_gpus = config.rollout.gpus_per_actor > 0 and config.trainer.gpus_per_rank > 0
    if config.sync.backend is SyncBackend.nccl and not on_gpus:
        yield (
            f"sync.backend = nccl with rollout.gpus_per_actor = {config.rollout.gpus_per_actor} "
            f"and trainer.gpus_per_rank = {config.trainer.gpus_per_rank}: NCCL joins GPUs; use "
            "sync.backend=ray, or give both GPUs"
        )


def _newest_of(folder: Path) -> str:
    try:
        return f"; the newest one there is {meant_checkpoint(folder)}"
    except CheckpointError:
        return ""


def _length_problems(config: Config) -> Iterator[str]:
    context, longest = config.student.context_length, config.rollout.max_new_tokens
    pairs = [("data", config.data, "rollout", longest)]
    for place, task in config.named_tasks.items():
        own = task.max_new_tokens
        owner, response = ("rollout", longest) if own is None else (place, own)
        pairs.append((f"{place}.data", task.data, owner, response))
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
    pass_tokens = rollout.max_num_batched_tokens
    if not rollout.gpus_per_actor:  # there a pass takes a whole prompt, whatever the key says
        pass_tokens = max(pass_tokens, config.student.context_length)
    if rollout.max_num_seqs > pass_tokens:
        yield (
            f"rollout.max_num_seqs = {rollout.max_num_seqs} with rollout.max_num_batched_tokens = "
            f"{rollout.max_num_batched_tokens}: a forward pass takes a token of every response; "
            f"lower the former, or raise the latter to {rollout.max_num_seqs}"
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
        for key, settings in config.teacher_set.models.items()
        if settings.traits.runs_model and (path := model_path(settings))
    ]
    yield from _top_k_problems(models, topks_in_use(config))


def _top_k_problems(models: Sequence[tuple[str, str]], topks: Mapping[str, int]) -> Iterator[str]:
    """Of models' paths and widths by key."""
    found: dict[str, str] = {}
    for key, path in models:
        try:
            described = config_json(path)
        except ModelShapeError as error:
            advice = model_advice(path) or str(error).removeprefix(f"{path}: ")
            yield f"{key} = {path!r}: {advice}"
            continue
        rows = (described or {}).get("vocab_size")
        for topk, value in topks.items():
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
    if trainer.offload_parameters and not trainer.gpus_per_rank:
        yield (
            "trainer.offload_parameters = true with trainer.gpus_per_rank = 0: without a GPU the "
            "weights are in main memory anyway; set it to false"
        )
    if trainer.offload_parameters and trainer.zero_stage != 3:
        yield (
            f"trainer.offload_parameters = true with trainer.zero_stage = {trainer.zero_stage}: "
            "only sharded weights are offloaded; use trainer.zero_stage=3"
        )
    layers = _students_layers(config)
    if layers is not None and (trainer.recomputed_layers or 0) > layers:
        yield (
            f"trainer.recomputed_layers = {trainer.recomputed_layers}: the student has {layers} "
            "layers; use at most that, or null for all"
        )


def _students_layers(config: Config) -> int | None:
    """How many it has, where its config.json is here and says so."""
    try:
        described = described_model(config.student.path)
    except ModelShapeError:
        return None  # told with its path
    return (described or {}).get("num_hidden_layers")


def data_problems(config: Config) -> Iterator[str]:
    """Every problem of the prompts, for training and for evaluation."""
    for section, data in config.data_sections.items():
        try:
            data.validate(section)
        except ConfigError as error:
            yield str(error)


def eval_problems(config: Config) -> Iterator[str]:
    """Every other problem of the tasks of the section ``eval``."""
    names = Counter(task.name for task in config.eval.tasks)
    yield from (
        f"eval.tasks: {count} tasks are called {name!r}; give each its own name"
        for name, count in names.items()
        if count > 1
    )
    for place, task in config.named_tasks.items():
        try:
            get_task(task.task)
        except ConfigError as error:
            yield f"{place}.{error}"
        yield from range_problems(place, task)
        if task.task == EnvironmentTask.name and not config.environment_set.any:
            yield (
                f"{place}.task = {task.task!r}: nothing judges its rollouts, as there is no "
                "environment; set environment.path, or take another task"
            )
        if not task.greedy and not task.samples:
            yield f"{place}.samples = 0 with greedy = false: nothing is asked; set one of them"
        if task.samples and task.temperature <= 0:
            yield (
                f"{place}.temperature = {task.temperature:g} with samples = {task.samples}: they "
                "need a temperature above 0; for greedy decoding alone set samples to 0"
            )


def teacher_accuracy_problems(config: Config) -> Iterator[str]:
    """Accuracy asked of a teacher that cannot write."""
    teacher = config.teacher
    if not config.eval.teacher_accuracy:
        return
    if not teacher.traits.runs_model:
        writers = " or ".join(kind for kind, traits in TRAITS.items() if traits.runs_model)
        found = f"teacher.kind = {teacher.kind!r}"
        why = f"only a teacher of kind {writers} can write answers"
    elif teacher.cache is CacheMode.replay:
        found, why = "teacher.cache = replay", "no teacher is there to write answers"
    elif not teacher.path:
        found, why = "teacher.path = null", "it is the section teacher that writes answers"
    else:
        return
    yield f"eval.teacher_accuracy = true with {found}: {why}; set it to false"
