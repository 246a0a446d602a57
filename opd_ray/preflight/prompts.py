"""Whether a run's prompts and its teachers fit: a teacher for every source, room for every prompt.

Checked when the prompts are read, before any model loads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from opd_ray.config.schema import Config
from opd_ray.data.prompt_set import SourceReport
from opd_ray.data.prompts import HeldOutTask, PromptFeed, divergence_prompts
from opd_ray.errors import ConfigError
from opd_ray.preflight.environments import without_prompts
from opd_ray.tasks.environment_task import EnvironmentTask


def check_routing(
    config: Config,
    prompts: PromptFeed,
    tasks: Sequence[HeldOutTask],
    teacher_contexts: Mapping[str, int],
) -> dict[str, int]:
    """Refuse prompts that no teacher would judge, routes without prompts, prompts without room.

    Args:
        config: of the run.
        prompts: to train on.
        tasks: whose first prompts are judged for the divergence on held-out ones.
        teacher_contexts: tokens by path, of teachers with files; others are asked when they run.

    Returns:
        Most tokens of prompt and response that each teacher may have to read, by name.

    Raises:
        ConfigError: names sources and counts, or the teacher and the lengths.
    """
    asked = divergence_prompts(tasks, config.eval.kl_prompts)
    held_out: dict[str, SourceReport] = {}
    for prompt in asked:
        known = held_out.get(prompt.source, SourceReport(0, 0))
        held_out[prompt.source] = SourceReport(
            known.prompts + 1, max(known.longest_teacher_prompt or 0, len(prompt.teacher_ids))
        )
    problems = [
        *_without_teacher(config, "data", prompts.sources),
        *_without_teacher(config, "eval.kl_prompts", held_out),
        *_without_prompts(config, {**held_out, **prompts.sources}),
        *without_prompts(config, dict.fromkeys([*prompts.sources, *_sources_of(tasks)])),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    teachers = config.teacher_set
    (only, *_) = teachers.working
    longest: dict[str, int] = {}
    for source, report in [*prompts.sources.items(), *held_out.items()]:
        name = teachers.routes.get(source, only)
        tokens = (report.longest_teacher_prompt or 0) + config.rollout.max_new_tokens
        longest[name] = max(longest.get(name, 0), tokens)
    if problems := list(_too_long(config, longest, teacher_contexts)):
        raise ConfigError("\n".join(problems))
    return longest


def without_environment(config: Config, tasks: Sequence[HeldOutTask]) -> list[str]:
    """Tasks that leave it to environments to judge, with problems that have none."""
    found = []
    for key, task in zip(config.named_tasks, tasks, strict=True):
        alone = [prompt.source for prompt in task.prompts if prompt.episode is None]
        if alone and isinstance(task.task, EnvironmentTask):
            found.append(
                f"{key}.task = {task.settings.task!r}: {len(alone)} of its {len(task.prompts)} "
                "problems have no environment, so nothing judges them (sources "
                f"{', '.join(map(repr, dict.fromkeys(alone)))}): give these sources one, or take "
                "another task for them"
            )
    return found


def prompt_notes(prompts: PromptFeed | None, tasks: Sequence[HeldOutTask]) -> list[str]:
    """What a user may not expect of prompts and problems, but lets a run start."""
    written = [note for task in tasks for note in task.notes]
    if prompts is None:
        return [*dict.fromkeys(written)]
    return [*dict.fromkeys([*prompts.notes, *written]), *repeated_problems(prompts, tasks)]


def repeated_problems(prompts: PromptFeed, tasks: Sequence[HeldOutTask]) -> list[str]:
    """A note for every task whose problems are trained on: its figures say less than they seem."""
    return [
        f"eval task {task.settings.name!r}: {count} of its {len(task.prompts)} problems are also "
        "among the training prompts (the same token ids, and with an environment the same columns),"
        " so its figures flatter the student: take them out of data, or measure on other problems"
        for task in tasks
        if (count := prompts.shared_with(task.prompts))
    ]


def _without_teacher(
    config: Config, section: str, sources: Mapping[str, SourceReport]
) -> Iterator[str]:
    missing = {s: r.prompts for s, r in sources.items() if s not in config.routes}
    if config.routes and missing:
        counts = ", ".join(f"{source!r} ({count} prompts)" for source, count in missing.items())
        yield (
            f"routes: no teacher for the sources {counts} of {section}; name one for each, "
            "or leave routes empty so that the section teacher judges everything"
        )


def _sources_of(tasks: Sequence[HeldOutTask]) -> list[str]:
    return list(dict.fromkeys(prompt.source for task in tasks for prompt in task.prompts))


def _without_prompts(config: Config, sources: Mapping[str, SourceReport]) -> list[str]:
    """Routes that no prompt takes: a misspelt source, whose teacher would load for nothing."""
    there = ", ".join(f"{source!r} ({report.prompts})" for source, report in sources.items())
    return [
        f"routes.{source} = {name!r}: no prompt of data or eval.kl_prompts has this source; there "
        f"is {there}: correct the name, or take the route out"
        for source, name in config.routes.items()
        if source not in sources
    ]


def _too_long(
    config: Config, longest: Mapping[str, int], teacher_contexts: Mapping[str, int]
) -> Iterator[str]:
    for name, tokens in longest.items():
        teacher = config.teacher_set.working[name]
        paths = [model.path or "" for model in teacher.models]
        contexts = [teacher_contexts[path] for path in paths if path in teacher_contexts]
        if contexts and min(contexts) < tokens:
            yield (
                f"{teacher.settings.key}: its longest prompt with rollout.max_new_tokens = "
                f"{config.rollout.max_new_tokens} has {tokens} tokens, its context is "
                f"{min(contexts)}; shorten data.fields.teacher_prompt, lower "
                "rollout.max_new_tokens, or use a teacher with a longer context"
            )
