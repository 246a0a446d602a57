"""The tokens between a student's turns, from its chat template; what it sampled stays as it is.

A template is a function of a whole conversation. What stands between two turns of the assistant is
found by difference: a short conversation is rendered with and without what follows a turn, and what
the longer text has more is what follows. So no token that the student wrote is ever tokenised anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from opd_ray.borders import border
from opd_ray.environments.environment import Message, ToolSchema
from opd_ray.errors import ConfigError

QUESTION: Message = {"role": "user", "content": "A question."}
_END_OF_THINKING = "</think>"
_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


class TemplateError(ConfigError):
    """A chat template through which no rollout of several turns can go token by token."""


class ThinkingLeftOut(TemplateError):
    """A chat template that leaves out what was thought in earlier turns, and is else as it was."""


@dataclass(frozen=True)
class TurnTemplate:
    """Openings and continuations of conversations as token ids.

    What does not depend on a conversation is found out once.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        tools: that the template shows.
        options: further variables of the template (``data.chat_template_kwargs``).
        end_ids: of the tokens that end a turn.
    """

    tokenizer: Any
    tools: Sequence[ToolSchema]
    options: Mapping[str, Any]
    end_ids: Sequence[int]
    # End tokens of a turn when nothing follows it, by the number of its calls.
    _ends_alone: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def special_tokens(self) -> list[str]:
        """Special tokens as text: in the words of a tool they are words."""
        return [
            token.content
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if (token.special or number in self.end_ids) and len(token.content) > 1
        ]

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to where the student begins to write."""
        return self._ids(self.render(messages, begin=True))

    def continuation(self, turn: Message, messages: Sequence[Message]) -> list[int]:
        """Ids of all that stands between the end token of a student's turn and its next turn.

        Args:
            turn: the student's turn as a message, of which only the names of its calls are used.
            messages: what follows it: results of tools, or a turn of the environment.

        Raises:
            TemplateError: the template writes no such conversation.
        """
        calls = turn.get("tool_calls", [])
        try:
            return self._ids(self._behind(calls, messages))
        except TemplateError:
            if len(calls) < 2:
                raise
            # Some templates write one call a turn, and any number of results.
            return self._ids(self._behind(calls[:1], messages))

    def _behind(self, calls: Sequence[Any], messages: Sequence[Message]) -> str:
        # Any words will do for a turn: only what stands behind them is looked at. Those of the
        # student's own might spell an end token.
        said: Message = {"role": "assistant", "content": "An answer."}
        if calls:
            said["tool_calls"] = [
                {**call, "function": {"name": self._known(call["function"]), "arguments": {}}}
                for call in calls
            ]
        spoken = [QUESTION, said]
        if len(calls) not in self._ends_alone:
            alone = self._ends.findall(self.render(spoken, begin=False))
            self._ends_alone[len(calls)] = len(alone)
        ends = self._ends_alone[len(calls)]
        followed = self.render([*spoken, *messages], begin=True)
        # The turn ends with as many end tokens as there are when nothing follows it; what else a
        # template writes for a last turn does not matter.
        there = [*self._ends.finditer(followed)]
        if not ends or len(there) < ends:
            raise self._endless()
        return followed[there[ends - 1].end() :]

    def _known(self, function: Mapping[str, Any]) -> str:
        """The name that a call asks for, or, of a tool that is not there, one that is."""
        names = [tool["function"]["name"] for tool in self.tools]
        name: str = function["name"]
        return name if name in names or not names else names[0]

    @cached_property
    def _ends(self) -> re.Pattern[str]:
        tokens = (str(self.tokenizer.convert_ids_to_tokens(number)) for number in self.end_ids)
        return re.compile("|".join(map(re.escape, tokens)))

    def _endless(self) -> TemplateError:
        ends = [self.tokenizer.convert_ids_to_tokens(number) for number in self.end_ids]
        return TemplateError(
            "the student's chat template does not end a turn of the assistant with any of "
            f"{', '.join(map(repr, ends))}: name its end token in generation_config.json"
        )

    @property
    def thinks(self) -> bool:
        """Whether turns are to begin with thinking, as far as the template says."""
        with border("the student's chat template", "take another template", TemplateError):
            source = self.tokenizer.get_chat_template(
                self.options.get("chat_template"), list(self.tools) or None
            )
        opened = self.render([QUESTION], begin=True).rstrip()
        return _END_OF_THINKING in source and not opened.endswith(_END_OF_THINKING)

    def render(self, messages: Sequence[Message], *, begin: bool) -> str:
        """The conversation as text, with the student's next turn opened if ``begin``.

        Raises:
            TemplateError: the template raises.
        """
        with border(
            "the student's chat template", "take a template that knows tools", TemplateError
        ):
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(self.tools) or None,
                tokenize=False,
                add_generation_prompt=begin,
                **self.options,
            )
        return text

    def last_end(self, text: str) -> re.Match[str]:
        """The last token in a text that ends a turn.

        Raises:
            TemplateError: there is none.
        """
        ends = [*self._ends.finditer(text)]
        if not ends:
            raise self._endless()
        return ends[-1]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def check(self, turns: Sequence[Message], answers: Sequence[Sequence[Message]]) -> None:
        """Build a conversation piece by piece and at once: they must be the same tokens.

        Args:
            turns: of the assistant.
            answers: what follows each of them.

        Raises:
            ThinkingLeftOut: they differ in earlier thinking alone.
            TemplateError: they are not the same; shows the first token that differs.
        """
        messages: list[Message] = [QUESTION]
        pieces = self.opening(messages)
        for turn, answer in zip(turns, answers, strict=True):
            opened = self.render(messages, begin=True)
            said = self.render([*messages, turn], begin=False)
            if not said.startswith(opened):
                raise TemplateError(
                    "the student's chat template opens a turn of the assistant otherwise than it "
                    f"writes one ({_difference(opened, said)})"
                )
            pieces += self._ids(said[len(opened) : self.last_end(said).end()])
            pieces += self.continuation(turn, answer)
            messages += [turn, *answer]
        whole = self.opening(messages)
        if pieces != whole:
            at = next(
                (n for n, (a, b) in enumerate(zip(pieces, whole, strict=False)) if a != b),
                min(len(pieces), len(whole)),
            )
            decode = self.tokenizer.decode
            thought = _THINKING.sub("", decode(pieces)) == _THINKING.sub("", decode(whole))
            raise (ThinkingLeftOut if thought else TemplateError)(
                "the student's chat template does not keep earlier turns as they were: at token "
                f"{at} of a conversation with {len(turns)} turns it has "
                f"{decode(whole[at : at + 8])!r} where {decode(pieces[at : at + 8])!r} was "
                f"written, after {decode(pieces[max(0, at - 8) : at])!r}"
            )


def _difference(expected: str, found: str) -> str:
    """Where two texts part, for a message."""
    at = next(
        (n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    before, here = expected[max(0, at - 20) : at], slice(at, at + 20)
    return f"after {before!r}: {found[here]!r}, alone {expected[here]!r}"
