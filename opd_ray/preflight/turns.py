"""Whether rollouts of several turns can go through the student's chat template token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from opd_ray.config.schema import Config
from opd_ray.data.chat_template import template_options
from opd_ray.data.prompts import HeldOutTask
from opd_ray.environments.by_source import RunEnvironment, RunEnvironments
from opd_ray.environments.environment import Message
from opd_ray.environments.turns import TemplateError, TurnTemplate

_THOUGHT = "<think>\nA thought.\n</think>\n\n"


def check_turns(
    config: Config,
    tokenizer: Any,
    end_ids: Sequence[int],
    sources: Sequence[str],
    tasks: Sequence[HeldOutTask],
) -> list[str]:
    """Build conversations with two calls both ways, turn by turn and at once.

    Args:
        config: of the run.
        tokenizer: the student's.
        end_ids: of the tokens that end its responses.
        sources: of the prompts to train on.
        tasks: of the evaluation.

    Returns:
        What a user should know of what the student is shown.

    Raises:
        TemplateError: names the section and shows the first token that differs.
    """
    environments = RunEnvironments(config.environment_set)
    asked: dict[str, Sequence[str]] = {"data": sources}
    for key, task in zip(config.named_tasks, tasks, strict=True):
        asked[f"{key}.data"] = [prompt.source for prompt in task.prompts]
    notes: list[str] = []
    for section, names in asked.items():
        options = template_options(tokenizer, config.data_sections[section], config.run.day)
        found = [environments.of(name) for name in dict.fromkeys(names)]
        for environment in {one.key: one for one in found if one is not None}.values():
            template = TurnTemplate(tokenizer, environment.tools, options, end_ids)
            notes += _checked(environment, section, template)
    return list(dict.fromkeys(notes))


def _checked(environment: RunEnvironment, section: str, template: TurnTemplate) -> Iterator[str]:
    place = f"{environment.place}, prompts of {section}"
    results = [[_result(environment)], [_result(environment)]]
    for thought in ("", _THOUGHT):
        turns = [_call(environment, thought), _call(environment, thought)]
        if environment.tools:
            _try(template, turns, results, place)
        if not environment.responds:
            continue
        said = [{"role": "assistant", "content": f"{thought}An answer."}] * 2
        asked: list[list[Message]] = [[{"role": "user", "content": "Go on."}]] * 2
        try:
            _try(template, said, asked, place)
        except TemplateError as error:
            if not environment.settings.keep_thinking:
                raise TemplateError(
                    f"{error}. In front of a message of the user's this template leaves out what "
                    "the student thought earlier, which stays in a rollout. Set "
                    f"{environment.key}.keep_thinking=true to let it stay; then the student is "
                    "shown more than the template would"
                ) from error
            yield (
                f"{place}: earlier thinking stays in a rollout, though the chat template leaves it "
                "out in front of a message of the user's (keep_thinking)"
            )
            return


def _try(
    template: TurnTemplate,
    turns: Sequence[Message],
    answers: Sequence[Sequence[Message]],
    place: str,
) -> None:
    try:
        template.check(turns, answers)
    except TemplateError as error:
        raise TemplateError(f"{place}: {error}") from error


def _call(environment: RunEnvironment, thought: str) -> Message:
    names = _names(environment)
    call = {"type": "function", "function": {"name": names[0], "arguments": {}}}
    return {"role": "assistant", "content": f"{thought}A call.", "tool_calls": [call]}


def _result(environment: RunEnvironment) -> Message:
    return {"role": "tool", "name": _names(environment)[0], "content": "A result."}


def _names(environment: RunEnvironment) -> list[str]:
    return [tool["function"]["name"] for tool in environment.tools] or ["none"]
