"""Whether a parser reads the calls that the student's chat template writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from opd_ray.borders import border
from opd_ray.environments.calls import CallParser, ToolCall
from opd_ray.environments.environment import ToolSchema
from opd_ray.environments.tool_list import shortened
from opd_ray.environments.turns import TemplateError
from opd_ray.preflight.contract.tool_arguments import random_arguments
from opd_ray.seeds import derive_seed

_QUESTION = {"role": "user", "content": "A question."}


def parser_problems(
    parser: CallParser, name: str, tools: Sequence[ToolSchema], tokenizer: Any
) -> Iterator[str]:
    """A line for every tool whose call, written by the template, comes back as another.

    Args:
        parser: of the environment.
        name: what the configuration calls it.
        tools: of the environment.
        tokenizer: the student's.
    """
    if not tokenizer.chat_template:
        yield "the student's tokenizer has no chat template, without which there are no turns"
        return
    try:
        yield from _problems(parser, name, tools, tokenizer)
    except TemplateError as error:
        yield str(error)


def _problems(
    parser: CallParser, name: str, tools: Sequence[ToolSchema], tokenizer: Any
) -> Iterator[str]:
    rng = Random(derive_seed(0, "check-environment", "parser"))
    opened = _rendered(tokenizer, tools, [_QUESTION], begin=True)
    for tool in tools:
        function = tool["function"]
        arguments = random_arguments(function.get("parameters", {}), rng, ())
        call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        written = _rendered(tokenizer, tools, [_QUESTION, turn], begin=False)
        # Where a turn is opened otherwise than it is written, a run says so before it starts.
        text = written.removeprefix(opened).rpartition(tokenizer.eos_token)[0]
        if function["name"] not in text:
            yield (
                f"the student's chat template writes no call of {function['name']!r}: it knows no "
                "tools; take a student, or a template, that does"
            )
            return
        read = parser.parse(text, tools).calls
        if read != (ToolCall(function["name"], arguments),):
            yield (
                f"parser {name!r} does not read the call that the student's chat template writes: "
                f"of {shortened(text)!r} it makes {shortened(list(read))}; set environment.parser "
                "to the one of the student's model"
            )
            return


def _rendered(
    tokenizer: Any, tools: Sequence[ToolSchema], messages: Sequence[Mapping[str, Any]], begin: bool
) -> str:
    with border("the student's chat template", "take a template that knows tools", TemplateError):
        text: str = tokenizer.apply_chat_template(
            list(messages), tools=list(tools), tokenize=False, add_generation_prompt=begin
        )
    return text
