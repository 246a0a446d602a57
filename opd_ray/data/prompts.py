"""The prompts of a run as token ids, and the held-out problems it is measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from opd_ray.config.data import DataSettings
from opd_ray.config.schema import Config, EvalTask
from opd_ray.data.gold_answers import asked_problems
from opd_ray.data.load import load_prompts
from opd_ray.data.prompt_set import PromptSet, SourceReport
from opd_ray.data.rows import DataError, PromptRow
from opd_ray.data.tokenize import tokenize_for_both
from opd_ray.seeds import digest64
from opd_ray.tasks import Task


@dataclass(frozen=True)
class Prompt:
    """One prompt of a batch."""

    key: str  # the row's id
    student_ids: np.ndarray  # [P] int32
    teacher_ids: np.ndarray  # [P'] int32; the student's own unless the row has a teacher prompt
    source: str = ""  # what routes name


@dataclass(frozen=True)
class HeldOutTask:
    """A task ready to be asked."""

    settings: EvalTask
    task: Task
    prompts: Sequence[Prompt]
    answers: Sequence[str]  # the gold answer of each prompt
    notes: Sequence[str] = ()  # what a person should know of them before they are asked


@dataclass(frozen=True)
class PromptFeed:
    """The training prompts, tokenised step by step."""

    rows: PromptSet
    settings: DataSettings
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, config: Config, tokenizer: PreTrainedTokenizerBase) -> PromptFeed:
        """Read and check ``data``.

        Raises:
            ConfigError, DataError: settings or rows that the run cannot use.
        """
        rows = load_prompts(config.data, seed=config.run.seed, tokenizer=tokenizer)
        if len(rows) < config.rollout.prompts_per_step:
            raise DataError(
                f"data has {len(rows)} prompts, rollout.prompts_per_step = "
                f"{config.rollout.prompts_per_step} asks for more a step: lower it or give more"
            )
        return cls(rows, config.data, tokenizer)

    def __str__(self) -> str:
        return str(self.rows.report)

    @property
    def sources(self) -> Mapping[str, SourceReport]:
        """What the prompts in use come from."""
        return self.rows.report.sources

    def shared_with(self, others: Sequence[Prompt]) -> int:
        """How many of ``others`` have the token ids of one of these prompts; reads no row."""
        assert self.rows.digests is not None, "these prompts were read without a tokenizer"
        wanted = np.array([digest64(p.student_ids.tobytes()) for p in others], dtype=np.uint64)
        return int(np.isin(wanted, self.rows.digests).sum())

    def batch(self, step: int, size: int) -> list[Prompt]:
        """The prompts of a step, from 0; they follow from step, size and seed alone."""
        return _prompts(self.rows.batch(step, size), self.tokenizer, self.settings)


def held_out_tasks(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[HeldOutTask]:
    """Read and check the problems of every evaluation task.

    Raises:
        ConfigError, DataError: settings or rows that cannot be used; problems without an answer, or
            with none that a response could give.
    """
    tasks = []
    for number, settings in enumerate(config.eval.tasks):
        section = f"eval.tasks[{number}].data"
        rows = load_prompts(
            settings.data, seed=config.run.seed, tokenizer=tokenizer, section=section
        )
        asked = asked_problems(settings, rows, section)
        prompts = _prompts(asked.rows, tokenizer, settings.data)
        tasks.append(HeldOutTask(settings, asked.task, prompts, asked.answers, asked.notes))
    return tasks


def divergence_prompts(tasks: Sequence[HeldOutTask], count: int) -> list[Prompt]:
    """The first ``count`` held-out prompts, task after task, for KL and top-1 agreement.

    Raises:
        DataError: prompts are asked for but no task has any.
    """
    if count and not any(task.prompts for task in tasks):
        raise DataError(
            f"eval.kl_prompts = {count} needs held-out prompts: add an eval task, or set it to 0"
        )
    pool = [(task.settings.name, prompt) for task in tasks for prompt in task.prompts][:count]
    times = Counter(prompt.key for _, prompt in pool)
    # Row ids are unique within one set of problems only.
    return [
        replace(prompt, key=f"{name}/{prompt.key}") if times[prompt.key] > 1 else prompt
        for name, prompt in pool
    ]


def _prompts(
    rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase, settings: DataSettings
) -> list[Prompt]:
    student, teacher = tokenize_for_both(rows, tokenizer, settings)
    return [
        Prompt(row.id, student_ids, teacher_ids, row.source)
        for row, student_ids, teacher_ids in zip(rows, student, teacher, strict=True)
    ]
