"""The files of every model of a run, before one loads: here, whole, and within the engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from opd_ray.config.schema import Config
from opd_ray.config.teacher import model_path
from opd_ray.errors import ConfigError, OpdError
from opd_ray.models.engine_limits import packed_problems, trained_problems, vllm_problems
from opd_ray.models.hub import check_reachable
from opd_ray.models.shape import ModelShapeError, described_model
from opd_ray.models.weight_files import NoWeights
from opd_ray.models.weights import WeightsCheck, check_weights


@dataclass(frozen=True)
class Engine:
    """A vLLM engine that runs a model."""

    key: str  # where the configuration splits it
    gpus: float
    split: int  # processes or GPUs


@dataclass(frozen=True)
class ModelUse:
    """A model of a run, and who computes with it."""

    key: str  # of its path
    path: str
    trust_remote_code: bool
    engines: tuple[Engine, ...] = ()
    packed: bool = False  # by transformers, in packed rows
    trained: bool = False


def models_of_run(config: Config) -> list[ModelUse]:
    """Of a training run: the student and every teacher that has files."""
    rollout = config.rollout
    split = rollout.tensor_parallel_size
    writer = Engine("rollout.tensor_parallel_size", rollout.gpus_per_actor, split)
    student = config.student
    found = [
        ModelUse("student.path", student.path, student.trust_remote_code, (writer,), True, True)
    ]
    for key, settings in config.teacher_set.models.items():
        path = model_path(settings)
        if path is None or not (settings.traits.runs_model or settings.traits.students_files):
            continue
        engines = []
        if by_vllm := settings.traits.vllm_engine:
            split = settings.tensor_parallel_size
            engines.append(Engine(f"{key}.tensor_parallel_size", settings.gpus_per_replica, split))
        if config.eval.teacher_accuracy and path == config.teacher.path:
            engines.append(writer)
        trust = settings.trust_remote_code
        found.append(ModelUse(f"{key}.path", path, trust, tuple(engines), packed=not by_vllm))
    return found


def models_of_evaluation(config: Config) -> list[ModelUse]:
    """Of an evaluation: the student alone, and nobody trains it."""
    (student, *_) = models_of_run(config)
    return [replace(student, packed=False, trained=False)]


def limit_problems(models: Sequence[ModelUse]) -> Iterator[str]:
    """What the engines cannot run of these models, as far as config.json tells; one a line."""
    for model in models:
        try:
            described = described_model(model.path)
        except ModelShapeError:  # told where paths are checked
            continue
        if described is None:
            continue
        place = f"{model.key} = {model.path!r}"
        for engine in model.engines:
            whose = f" with {engine.key} = {engine.split}" if engine.split > 1 else ""
            for text in vllm_problems(described, on_cpu=not engine.gpus, split=engine.split):
                yield f"{place}{whose}: {text}"
        if model.packed:
            yield from (f"{place}: {text}" for text in packed_problems(described))
        if model.trained:
            yield from (f"{place}: {text}" for text in trained_problems(described))


def check_model_files(config: Config, models: Sequence[ModelUse]) -> None:
    """Refuse models that cannot be had, or whose weights are not all theirs.

    In a cluster that runs already the weights may be on its nodes alone; whoever loads them there
    compares them.

    Raises:
        ConfigError: every problem, one a line.
    """
    here = config.cluster.address is None

    def reachable(model: ModelUse) -> None:
        check_reachable(model.path, weights=here)

    def whole(model: ModelUse) -> None:
        try:
            weights_of(model)
        except NoWeights:
            if here:
                raise

    # Whether models can be had is known before the libraries are imported that read them.
    for check in (reachable, whole):
        problems = []
        for model in models_once(models):
            try:
                check(model)
            except OpdError as error:
                problems.append(told_of(model, error))
        if problems:
            raise ConfigError("\n".join(problems))


def models_once(models: Sequence[ModelUse]) -> list[ModelUse]:
    """Each path once, under its first key, with the engines of all."""
    found: dict[str, ModelUse] = {}
    for model in models:
        first = found.setdefault(model.path, model)
        if model.engines and not first.engines:
            found[model.path] = replace(first, engines=model.engines)
    return list(found.values())


def weights_of(model: ModelUse) -> WeightsCheck:
    """See :func:`check_weights`."""
    return check_weights(
        model.path, trust_remote_code=model.trust_remote_code, vllm=bool(model.engines)
    )


def told_of(model: ModelUse, error: OpdError) -> str:
    """What is wrong with a model's files, behind the key that names it."""
    text = str(error)
    for before in (f"{model.path}: ", f"{model.path}/"):
        text = text.removeprefix(before)
    return f"{model.key} = {model.path!r}: {text}"
