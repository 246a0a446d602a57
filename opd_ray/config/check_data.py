"""What no prompts and no evaluation can have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from opd_ray.config.check_teacher import MODEL_KINDS
from opd_ray.config.choices import CacheMode
from opd_ray.config.keys import shown
from opd_ray.config.schema import Config, EvalTask
from opd_ray.errors import ConfigError


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
