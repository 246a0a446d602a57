"""The prompts of a run as token ids, and the held-out problems it is measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
from transformers import PreTrainedTokenizerBase

from opd_ray.config.data import DataSettings
from opd_ray.config.schema import Config, EvalTask
from opd_ray.data.chat_template import reads_clock
from opd_ray.data.gold_answers import asked_problems
from opd_ray.data.load import load_prompts
from opd_ray.data.prompt_set import PromptSet, PromptsIdentity, SourceReport, problem_digest
from opd_ray.data.rows import DataError, PromptRow
from opd_ray.data.tokenize import episode_start, tokenize_for_both
from opd_ray.environments.by_source import NO_ENVIRONMENTS, RunEnvironments
from opd_ray.tasks import Task
from opd_ray.types import EpisodeStart, RolloutRequest


@dataclass(frozen=True)
class Prompt:
    """One prompt of a batch."""

    key: str  # the row's id
    student_ids: np.ndarray  # [P] int32
    teacher_ids: np.ndarray  # [P'] int32; the student's own unless the row has a teacher prompt
    source: str = ""  # what routes and environments name
    episode: EpisodeStart | None = None  # where it has an environment

    @property
    def digest(self) -> int:
        """Equal for equal problems, whatever their ids; see :func:`problem_digest`."""
        return problem_digest(self.student_ids, None if self.episode is None else self.episode.row)

    def request(self, rollout_id: str, sample: int, seed: int) -> RolloutRequest:
        """One response to it wanted from the student."""
        return RolloutRequest(
            rollout_id, self.key, sample, self.student_ids, seed, self.source, self.episode
        )


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
    day: date | None = None  # what chat templates that read the clock are told; None: today
    environments: RunEnvironments = NO_ENVIRONMENTS

    @classmethod
    def load(
        cls,
        config: Config,
        tokenizer: PreTrainedTokenizerBase,
        environments: RunEnvironments | None = None,
    ) -> PromptFeed:
        """Read and check ``data``; ``environments`` are the configuration's, if they are at hand.

        Raises:
            ConfigError, DataError: settings or rows that the run cannot use.
        """
        day = config.run.day
        environments = environments or RunEnvironments(config.environment_set)
        rows = load_prompts(
            config.data,
            seed=config.run.seed,
            tokenizer=tokenizer,
            day=day,
            environments=environments,
        )
        if len(rows) < config.rollout.prompts_per_step:
            raise DataError(
                f"data has {len(rows)} prompts, rollout.prompts_per_step = "
                f"{config.rollout.prompts_per_step} asks for more a step: lower it or give more"
            )
        return cls(rows, config.data, tokenizer, day, environments)

    def __str__(self) -> str:
        return str(self.rows.report)

    @property
    def notes(self) -> Sequence[str]:
        """What a user may not expect of how they are written."""
        return self.rows.report.notes

    @property
    def sources(self) -> Mapping[str, SourceReport]:
        """What the prompts in use come from."""
        return self.rows.report.sources

    def shared_with(self, others: Sequence[Prompt]) -> int:
        """How many of ``others`` are among these: the same token ids, and with an environment the
        same columns. Reads no row."""
        assert self.rows.digests is not None, "these prompts were read without a tokenizer"
        wanted = np.array([p.digest for p in others], dtype=np.uint64)
        return int(np.isin(wanted, self.rows.digests).sum())

    @property
    def identity(self) -> PromptsIdentity:
        """By which a run that goes on knows its prompts again."""
        return self.rows.identity

    def going_on_after(self, earlier: Sequence[tuple[int, int]]) -> PromptFeed:
        """For a run whose parts before took ``earlier``, (steps, prompts of each) a part."""
        return replace(self, rows=self.rows.going_on_after(earlier))

    def taken(self, step: int, size: int) -> list[list[int]]:
        """[steps, prompts of each] of every part up to ``step``, the last one with ``size``."""
        before = [list(part) for part in self.rows.earlier]
        return [*before, [step - sum(steps for steps, _ in before), size]]

    def batch(self, step: int, size: int) -> list[Prompt]:
        """The prompts of a step, from 0; see :meth:`PromptSet.batch`."""
        rows = self.rows.batch(step, size)
        return _prompts(rows, self.tokenizer, self.settings, self.day, self.environments)


def held_out_tasks(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    environments: RunEnvironments | None = None,
) -> list[HeldOutTask]:
    """Read and check the problems of every evaluation task; ``environments`` as of the prompts.

    Raises:
        ConfigError, DataError: settings or rows that cannot be used; problems without an answer, or
            with none that a response could give.
    """
    tasks = []
    day = config.run.day
    environments = environments or RunEnvironments(config.environment_set)
    for key, settings in config.named_tasks.items():
        section = f"{key}.data"
        rows = load_prompts(
            settings.data,
            seed=config.run.seed,
            tokenizer=tokenizer,
            section=section,
            day=day,
            environments=environments,
        )
        asked = asked_problems(settings, rows, section)
        prompts = _prompts(asked.rows, tokenizer, settings.data, day, environments)
        notes = [*rows.report.notes, *asked.notes]
        tasks.append(HeldOutTask(settings, asked.task, prompts, asked.answers, notes))
    return tasks


def dated(config: Config, tokenizer: PreTrainedTokenizerBase, kept: str | None) -> Config:
    """With the day that chat templates are told, where one of them reads the clock.

    ``kept`` is the day that the run or evaluation began with, if it goes on; then, and on every day
    that it goes on, its prompts are the same.
    """
    if config.run.date is not None or not any(
        reads_clock(tokenizer, settings, section)
        for section, settings in config.data_sections.items()
    ):
        return config
    return replace(config, run=replace(config.run, date=kept or date.today().isoformat()))


def own_teacher_prompts(prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
    """What teachers read in place of the student's prompt, by prompt key, where there is that."""
    return {
        prompt.key: prompt.teacher_ids
        for prompt in prompts
        if not np.array_equal(prompt.teacher_ids, prompt.student_ids)
    }


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
    rows: Sequence[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    day: date | None,
    environments: RunEnvironments,
) -> list[Prompt]:
    student, teacher = tokenize_for_both(
        rows, tokenizer, settings, day=day, environments=environments
    )

    def episode(row: PromptRow) -> EpisodeStart | None:
        acts = environments.of(row.source) is not None
        return episode_start(row, tokenizer, settings, day) if acts else None

    return [
        Prompt(row.id, student_ids, teacher_ids, row.source, episode(row))
        for row, student_ids, teacher_ids in zip(rows, student, teacher, strict=True)
    ]
