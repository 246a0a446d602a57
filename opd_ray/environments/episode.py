"""One rollout of several turns: what the student is to read next, and what it has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opd_ray.environments.calls import BadCall, CallParser, ToolCall
from opd_ray.environments.environment import Environment, Message, Responds, ToolResult
from opd_ray.environments.runner import Busy, CallTimeout, EnvironmentRunner, StillBusy
from opd_ray.environments.tool_class import as_tool_result
from opd_ray.environments.turns import TurnTemplate


@dataclass(frozen=True)
class EpisodeLimits:
    """Where a rollout of several turns ends at the latest."""

    context: int  # tokens of prompt and response together
    turns: int  # of the student
    calls: int  # of tools
    result_tokens: int  # of one tool's result; what is beyond is cut


@dataclass
class CallAccount:
    """What became of the calls of a rollout."""

    calls: int = 0
    parse_error: int = 0
    unknown: int = 0
    failed: int = 0  # the tool raised
    timeout: int = 0
    cut: int = 0  # results that were shortened


@dataclass
class Episode:
    """Token in, token out: what the student sampled is kept and never tokenised anew.

    :meth:`begin`, then :meth:`take` after every turn until it says that nothing follows.

    Attributes:
        prompt_ids: [P] tokens before the first turn.
        response_ids: [m] all tokens behind them, the student's and others.
        response_mask: [m] 1: the student wrote it.
        turns: [m] the number of the student's turn, from 0; of other tokens that of the turn before.
        ending: "stop", "length" (a turn was cut), "context", "turns" or "tool_limit".
    """

    environment: Environment
    template: TurnTemplate
    parser: CallParser
    runner: EnvironmentRunner
    limits: EpisodeLimits
    prompt_ids: list[int] = field(default_factory=list)
    response_ids: list[int] = field(default_factory=list)
    response_mask: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    account: CallAccount = field(default_factory=CallAccount)
    ending: str | None = None
    _busy: Busy = field(default_factory=Busy)
    _turn: int = 0

    async def begin(self, row: Mapping[str, Any]) -> None:
        """Reset the environment; :attr:`prompt_ids` is then what the student reads."""
        self.messages = await self.runner.call(self._busy, self.environment.reset, row)
        self.prompt_ids = self.template.opening(self.messages)
        if len(self.prompt_ids) >= self.limits.context:
            self.ending = "context"

    async def take(self, turn_ids: Sequence[int], finished: str) -> None:
        """Add a turn of the student and what follows it; :attr:`ending` is set where that is all.

        Args:
            turn_ids: as it was sampled, the token that ended it included.
            finished: "stop" or "length", as the engine says.
        """
        self._add(turn_ids, student=True)
        self._turn += 1
        if finished != "stop":
            self.ending = finished
            return
        turn = self.parser.parse(self._text(turn_ids), self.environment.tools)
        self.messages.append(turn.message())
        if turn.calls:
            follows = await self._results(turn.calls)
        else:
            follows = await self._response(turn.content)
        if self.ending is not None:
            return
        more = self.template.continuation(turn.message(), follows, ended=True)
        self.messages += follows
        if len(self.prompt_ids) + len(self.response_ids) + len(more) >= self.limits.context:
            self.ending = "context"  # the student's tokens stay, what it cannot answer does not
            return
        self._add(more, student=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Response tokens, mask and turns, [m] each."""
        return {
            "response_ids": np.array(self.response_ids, dtype=np.int32),
            "response_mask": np.array(self.response_mask, dtype=np.uint8),
            "turns": np.array(self.turns, dtype=np.int16),
        }

    async def _results(self, calls: Sequence[ToolCall | BadCall]) -> list[Message]:
        """Every call answered, in the order of the calls."""
        if self._turn >= self.limits.turns:
            self.ending = "turns"
            return []
        follows: list[Message] = []
        for call in calls:
            if self.account.calls >= self.limits.calls:
                self.ending = "tool_limit"
                return []
            self.account.calls += 1
            result = await self._answer(call)
            message: Message = {"role": "tool", "content": self._readable(result.text)}
            if isinstance(call, ToolCall):
                message["name"] = call.name
            follows.append(message)
            if result.done:
                self.ending = "stop"
        return follows

    async def _response(self, text: str) -> list[Message]:
        """What an environment says to a turn without a call."""
        if not isinstance(self.environment, Responds):
            self.ending = "stop"
            return []
        follows = await self.runner.call(self._busy, self.environment.respond, text)
        if follows is None:
            self.ending = "stop"
        elif self._turn >= self.limits.turns:
            self.ending = "turns"
        return follows or []

    async def _answer(self, call: ToolCall | BadCall) -> ToolResult:
        """The result of a call, or why there is none, which the student reads in its place."""
        if isinstance(call, BadCall):
            self.account.parse_error += 1
            return ToolResult(f"error: {call.problem}")
        names = [tool["function"]["name"] for tool in self.environment.tools]
        if call.name not in names:
            self.account.unknown += 1
            return ToolResult(
                f"error: there is no tool {call.name!r}; there are {', '.join(names)}"
            )
        try:
            answered = await self.runner.call(
                self._busy, self.environment.call_tool, call.name, call.arguments
            )
            return as_tool_result(answered)
        except CallTimeout:
            self.account.timeout += 1
            return ToolResult("error: the tool took too long and was given up")
        except StillBusy:
            self.account.timeout += 1
            return ToolResult("error: an earlier call has not come back; no tool can be called")
        except Exception as error:
            # Part of the world that the student acts in: it reads what the tool says.
            self.account.failed += 1
            return ToolResult(f"error: {type(error).__name__}: {error}")

    def _readable(self, text: str) -> str:
        """A result without special tokens, cut to ``result_tokens``."""
        text = text.encode(errors="replace").decode()
        for token in self.template.special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        tokenizer, most = self.template.tokenizer, self.limits.result_tokens
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= most:
            return text
        self.account.cut += 1
        return f"{tokenizer.decode(ids[:most])}\n[cut: {most} of {len(ids)} tokens]"

    def _text(self, turn_ids: Sequence[int]) -> str:
        """A turn with its special tokens, without the one that ended it."""
        ends = turn_ids and turn_ids[-1] in self.template.end_ids
        return self.template.tokenizer.decode(turn_ids[:-1] if ends else turn_ids)

    def _add(self, ids: Sequence[int], *, student: bool) -> None:
        self.response_ids += ids
        self.response_mask += [int(student)] * len(ids)
        self.turns += [self._turn if student else self._turn - 1] * len(ids)
