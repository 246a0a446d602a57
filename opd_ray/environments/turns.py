"""The tokens between a student's turns, from its chat template; what it sampled stays as it is.

A template is a function of a whole conversation. What stands between two turns of the assistant is
found by difference: a short conversation is rendered with and without what follows a turn, and what
the longer text has more is what follows. So no token that the student wrote is ever tokenised anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd_ray.borders import border
from opd_ray.environments.environment import Message, ToolSchema
from opd_ray.errors import ConfigError

_QUESTION: Message = {"role": "user", "content": "A question."}


class TemplateError(ConfigError):
    """A chat template through which no rollout of several turns can go token by token."""


@dataclass(frozen=True)
class TurnTemplate:
    """Openings and continuations of conversations as token ids.

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

    @property
    def special_tokens(self) -> list[str]:
        """Special tokens as text: in the words of a tool they are words."""
        added = self.tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.special and len(token.content) > 1]

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to where the student begins to write."""
        return self._ids(self._render(messages, begin=True))

    def continuation(self, turn: Message, messages: Sequence[Message], ended: bool) -> list[int]:
        """Ids of all that stands between a turn of the student and its next one.

        Args:
            turn: the student's turn as a message; of its content nothing is used.
            messages: what follows it: results of tools, or a turn of the environment.
            ended: whether the student wrote the token that ends a turn; else it is put here.

        Raises:
            TemplateError: the template renders a turn in another way when something follows it.
        """
        # Any words will do for a turn: only what stands behind them is looked at.
        spoken = [_QUESTION, {**turn, "content": "An answer."}]
        alone = self._render(spoken, begin=False)
        followed = self._render([*spoken, *messages], begin=True)
        end, at = self._last_end(alone)
        if not followed.startswith(alone[: at + len(end)]):
            raise TemplateError(
                "the student's chat template writes a turn otherwise once something follows it "
                f"({_difference(alone, followed)}): its tokens cannot be kept as they were sampled"
            )
        return self._ids(followed[at + (len(end) if ended else 0) :])

    def _last_end(self, text: str) -> tuple[str, int]:
        """The end token that a rendered turn ends with, and where it begins."""
        ends = [self.tokenizer.convert_ids_to_tokens(number) for number in self.end_ids]
        found = max(((text.rfind(end), end) for end in ends), default=(-1, ""))
        if found[0] < 0:
            raise TemplateError(
                "the student's chat template does not end a turn of the assistant with any of "
                f"{', '.join(map(repr, ends))}: name its end token in generation_config.json"
            )
        return found[1], found[0]

    def _render(self, messages: Sequence[Message], *, begin: bool) -> str:
        with border(
            "the student's chat template", "take a template that knows tools", TemplateError
        ):
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(self.tools) or None,
                tokenize=False,
                add_generation_prompt=begin,
                **self.options,
            )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def check(self, turns: Sequence[Message], answers: Sequence[Sequence[Message]]) -> None:
        """Build a conversation piece by piece and at once: they must be the same tokens.

        Args:
            turns: of the assistant.
            answers: what follows each of them.

        Raises:
            TemplateError: they are not; shows the first token that differs.
        """
        messages: list[Message] = [_QUESTION]
        pieces = self.opening(messages)
        for turn, answer in zip(turns, answers, strict=True):
            opened = self._render(messages, begin=True)
            said = self._render([*messages, turn], begin=False)
            if not said.startswith(opened):
                raise TemplateError(
                    "the student's chat template opens a turn of the assistant otherwise than it "
                    f"writes one ({_difference(opened, said)})"
                )
            end, at = self._last_end(said)
            pieces += self._ids(said[len(opened) : at + len(end)])
            pieces += self.continuation(turn, answer, ended=True)
            messages += [turn, *answer]
        whole = self.opening(messages)
        if pieces != whole:
            at = next(
                (n for n, (a, b) in enumerate(zip(pieces, whole, strict=False)) if a != b),
                min(len(pieces), len(whole)),
            )
            decode = self.tokenizer.decode
            raise TemplateError(
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
