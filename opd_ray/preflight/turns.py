"""Whether rollouts of several turns can go through the student's chat template token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from opd_ray.config.schema import Config
from opd_ray.data.chat_template import template_options
from opd_ray.data.prompts import HeldOutTask
from opd_ray.environments.by_source import RunEnvironment, RunEnvironments
from opd_ray.environments.calls import call_id
from opd_ray.environments.environment import Message
from opd_ray.environments.turns import TemplateError, ThinkingLeftOut, TurnTemplate
from opd_ray.errors import ConfigError
from opd_ray.preflight.prompts import without_environment

_THOUGHT = "<think>\nA thought.\n</think>\n\n"


def check_turns(
    config: Config,
    tokenizer: Any,
    end_ids: Sequence[int],
    sources: Sequence[str],
    tasks: Sequence[HeldOutTask],
    environments: RunEnvironments | None = None,
) -> list[str]:
    """Build conversations with two calls both ways, turn by turn and at once.

    Args:
        config: of the run.
        tokenizer: the student's.
        end_ids: of the tokens that end its responses.
        sources: of the prompts to train on.
        tasks: of the evaluation.
        environments: the configuration's, if they are at hand.

    Returns:
        What a user should know of what the student is shown.

    Raises:
        ConfigError: nothing judges the problems of a task.
        TemplateError: names the section and shows the first token that differs.
    """
    if problems := without_environment(config, tasks):
        raise ConfigError("\n".join(problems))
    environments = environments or RunEnvironments(config.environment_set)
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
    thought = _THOUGHT if template.thinks else ""
    conversations: list[tuple[Message, Message]] = []  # (a turn, what follows it)
    if environment.tools:
        conversations.append((_call(environment, thought), _result(environment)))
    if environment.responds:
        said = {"role": "assistant", "content": f"{thought}An answer."}
        conversations.append((said, {"role": "user", "content": "Go on."}))
    for turn, answer in conversations:
        try:
            template.check([turn, turn], [[answer], [answer]])
        except ThinkingLeftOut as error:
            if not environment.settings.keep_thinking:
                raise TemplateError(
                    f"{place}: {error}. It leaves out what was thought in earlier turns, which "
                    f"stays in a rollout: set {environment.key}.keep_thinking=true to train on "
                    "such rollouts all the same, or take a template that keeps it"
                ) from error
            yield (
                f"{place}: earlier thinking stays in rollouts, though the chat template leaves it "
                f"out ({environment.key}.keep_thinking)"
            )
        except TemplateError as error:
            raise TemplateError(f"{place}: {error}") from error


def _call(environment: RunEnvironment, thought: str) -> Message:
    call = {
        "id": call_id(0),
        "type": "function",
        "function": {"name": _name(environment), "arguments": {}},
    }
    return {"role": "assistant", "content": f"{thought}A call.", "tool_calls": [call]}


def _result(environment: RunEnvironment) -> Message:
    return {
        "role": "tool",
        "tool_call_id": call_id(0),
        "name": _name(environment),
        "content": "A result.",
    }


def _name(environment: RunEnvironment) -> str:
    name: str = environment.tools[0]["function"]["name"]
    return name
