"""Whether a parser reads the calls that the student's chat template writes."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from opd_ray.environments.calls import CallParser, ToolCall
from opd_ray.environments.tool_list import shortened
from opd_ray.environments.turns import QUESTION, TemplateError, TurnTemplate
from opd_ray.preflight.contract.tool_arguments import random_arguments
from opd_ray.seeds import derive_seed


def parser_problems(parser: CallParser, name: str, template: TurnTemplate) -> Iterator[str]:
    """A line for the first tool whose call, written by the template, comes back as another.

    Args:
        parser: of the environment.
        name: what the configuration calls it.
        template: the student's, with the environment's tools.
    """
    if not template.tokenizer.chat_template:
        yield "the student's tokenizer has no chat template, without which there are no turns"
        return
    try:
        yield from _problems(parser, name, template)
    except TemplateError as error:
        yield str(error)


def _problems(parser: CallParser, name: str, template: TurnTemplate) -> Iterator[str]:
    rng = Random(derive_seed(0, "check-environment", "parser"))
    opened = template.render([QUESTION], begin=True)
    for tool in template.tools:
        function = tool["function"]
        arguments = random_arguments(function.get("parameters", {}), rng, ())
        call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        written = template.render([QUESTION, turn], begin=False)
        # Where a turn is opened otherwise than it is written, a run says so before it starts.
        text = written[: template.last_end(written).start()].removeprefix(opened)
        if function["name"] not in text:
            yield (
                f"the student's chat template writes no call of {function['name']!r}: it knows no "
                "tools; take a student, or a template, that does"
            )
            return
        read = parser.parse(text, template.tools).calls
        if read != (ToolCall(function["name"], arguments),):
            yield (
                f"parser {name!r} does not read the call that the student's chat template writes: "
                f"of {shortened(text)!r} it makes {shortened(list(read))}; set environment.parser "
                "to the one of the student's model"
            )
            return
