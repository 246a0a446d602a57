"""Chat templates through which rollouts of several turns can go, and those that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from chat_tokenizer import TEMPLATE, THINKING_TEMPLATE, chat_tokenizer

from opd_ray.config.environment import EnvironmentSettings
from opd_ray.config.load import load_config
from opd_ray.config.schema import EvalTask
from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.environments.turns import TemplateError
from opd_ray.errors import ConfigError
from opd_ray.preflight.turns import check_turns
from opd_ray.tasks import get_task
from opd_ray.types import EpisodeStart


class Looks:
    def look(self) -> str:
        """Looks."""
        return "x"


class Answers(Looks):
    def respond(self, text: str) -> None:
        return None


class Talks:
    def respond(self, text: str) -> None:
        return None


def notes(template: str, world: str, *, keep: bool = False, **options: Any) -> list[str]:
    tokenizer = chat_tokenizer(template)
    config = load_config("demo", ["eval.tasks=[]", "eval.kl_prompts=0"])
    data = replace(config.data, chat_template_kwargs=options)
    environment = EnvironmentSettings(path=f"{__name__}:{world}", keep_thinking=keep)
    config = replace(config, data=data, environment=environment)
    return check_turns(config, tokenizer, [tokenizer.eos_token_id], ["chain_sum"], [])


@pytest.mark.parametrize("world", ["Looks", "Answers", "Talks"])
def test_a_template_that_keeps_what_was_said_passes(world: str) -> None:
    assert notes(TEMPLATE, world) == []


def test_thinking_stays_between_calls_and_is_left_out_at_a_new_question() -> None:
    assert notes(THINKING_TEMPLATE, "Looks") == []
    for world in ("Answers", "Talks"):
        with pytest.raises(TemplateError) as raised:
            notes(THINKING_TEMPLATE, world)
        text = str(raised.value)
        assert text.startswith(f"environment.path = '{__name__}:{world}', prompts of data: ")
        assert "leaves out what was thought in earlier turns" in text
        assert "environment.keep_thinking=true" in text
        (note,) = notes(THINKING_TEMPLATE, world, keep=True)
        assert "earlier thinking stays in rollouts" in note


def test_empty_thoughts_that_open_a_turn_are_thinking_too() -> None:
    with pytest.raises(TemplateError, match="keep_thinking=true"):
        notes(THINKING_TEMPLATE, "Looks", enable_thinking=False)
    (note,) = notes(THINKING_TEMPLATE, "Looks", keep=True, enable_thinking=False)
    assert "earlier thinking stays" in note


def forgetting(rest: str) -> str:
    """A template that writes ``rest`` for what was said in earlier turns."""
    kept = "m.content if loop.last or m.role != 'assistant' else " + rest
    return TEMPLATE.replace("{{ m.role }}\n{{ m.content }}", "{{ m.role }}\n{{ " + kept + " }}")


def test_what_is_lost_beside_thinking_is_refused_whatever_the_key_says() -> None:
    forgets = forgetting("''")
    for keep in (False, True):
        with pytest.raises(
            TemplateError, match="does not keep earlier turns as they were: at token"
        ):
            notes(forgets, "Looks", keep=keep)


def test_the_first_other_token_is_shown() -> None:
    with pytest.raises(TemplateError) as raised:
        notes(forgetting("'!'"), "Talks")
    assert "has '!<|im_end|>" in str(raised.value)
    assert "where 'An answe' was" in str(raised.value)


def test_a_task_that_environments_judge_has_no_problem_without_one() -> None:
    config = load_config("demo", ["eval.kl_prompts=0"])
    settings = EvalTask(name="shop", task="environment")
    config = replace(config, eval=replace(config.eval, tasks=[settings]))
    nothing = np.empty(0, np.int32)
    prompts = [
        Prompt("a", nothing, nothing, "shop", EpisodeStart({}, {})),
        Prompt("b", nothing, nothing, "sums"),
    ]
    tokenizer = chat_tokenizer(TEMPLATE)
    task = HeldOutTask(settings, get_task("environment"), prompts, ["", ""])
    with pytest.raises(ConfigError, match=r"eval\.tasks\[0\]\.task = 'environment': 1 of its 2 p"):
        check_turns(config, tokenizer, [tokenizer.eos_token_id], [], [task])
    task = replace(task, prompts=prompts[:1])
    assert check_turns(config, tokenizer, [tokenizer.eos_token_id], [], [task]) == []
