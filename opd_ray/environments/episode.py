"""One rollout of several turns: what the student is to read next, and what it has written."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opd_ray.borders import first_line
from opd_ray.environments.answers import as_figures, as_follow_up, as_messages
from opd_ray.environments.call_account import CallAccount
from opd_ray.environments.calls import AssistantTurn, BadCall, CallParser, ToolCall, call_id
from opd_ray.environments.environment import Environment, Message, Responds, ToolResult
from opd_ray.environments.runner import (
    Busy,
    CallFailed,
    EnvironmentRunner,
    NoAnswer,
    TooManyHang,
)
from opd_ray.environments.tool_class import as_tool_result
from opd_ray.environments.turns import TurnTemplate
from opd_ray.environments.words import plain, shortened
from opd_ray.user_code import UserCodeError, users_code


class _Hangs(UserCodeError):
    """An environment does not come back."""


@dataclass(frozen=True)
class EpisodeLimits:
    """Where a rollout of several turns ends at the latest."""

    context: int  # tokens of prompt and response together
    response: int  # tokens of all turns and what stands between them
    turns: int  # of the student
    calls: int  # of tools
    result_tokens: int  # of one tool's result; what is beyond is cut
    turn: int | None = None  # tokens of one turn of the student


@dataclass
class Episode:
    """Token in, token out: what the student sampled is kept and never tokenised anew.

    :meth:`begin`, then :meth:`take` after every turn until it says that nothing follows.

    Attributes:
        prompt_ids: [P] tokens before the first turn.
        response_ids: [m] all tokens behind them, the student's and others.
        response_mask: [m] 1: the student wrote it.
        turns: [m] the number of the student's turn, from 0; of others that of the turn before.
        ending: "stop", or the limit that it came to: "length" (of the response or a turn),
            "context", "turns" or "tool_limit".
        figures: what :meth:`Environment.verify` says, after :meth:`finish`.
    """

    place: str  # of the environment, for messages
    make: Callable[[], Environment]
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
    figures: dict[str, float] = field(default_factory=dict)
    environment: Environment = field(init=False)  # from the beginning on
    _busy: Busy = field(default_factory=Busy)
    _turn: int = 0

    async def begin(self, row: Mapping[str, Any], prompt_ids: Sequence[int]) -> None:
        """Make and reset the environment; :attr:`prompt_ids` is then what the student reads.

        Args:
            row: what the environment is reset to.
            prompt_ids: of ``row["prompt"]``; taken where the environment begins with no other.

        Raises:
            UserCodeError: it cannot be made, ``reset`` raised, or made a prompt that leaves no room
                for an answer.
        """
        self.environment = await self._own("it cannot be made", self.make)
        # The environment may write into what it is given.
        given = copy.deepcopy(dict(row))
        self.messages = await self._own("reset", self.environment.reset, given, read=as_messages)
        with users_code(f"{self.place}: reset"):
            if self.messages == row["prompt"]:
                self.prompt_ids = list(prompt_ids)
            else:
                self.prompt_ids = self.template.opening(self.messages)
        if len(self.prompt_ids) >= self.limits.context:
            raise UserCodeError(
                f"{self.place}: reset made a prompt of {len(self.prompt_ids)} tokens, and "
                f"student.context_length is {self.limits.context}: begin with less, or raise it"
            )

    @property
    def room(self) -> int:
        """Tokens that the next turn of the student may have, at least 1."""
        free = min(self._context_room, self.limits.response - len(self.response_ids))
        return free if self.limits.turn is None else min(free, self.limits.turn)

    @property
    def _context_room(self) -> int:
        return self.limits.context - len(self.prompt_ids) - len(self.response_ids)

    async def take(self, turn_ids: Sequence[int], finished: str) -> None:
        """Add a turn of the student and what follows it; :attr:`ending` is set where that is all.

        Args:
            turn_ids: as it was sampled, the token that ended it included.
            finished: "stop" or "length", as the engine says.
        """
        fills_context = len(turn_ids) >= self._context_room
        self._add(turn_ids, student=True)
        self._turn += 1
        if finished != "stop":
            self.ending = "context" if fills_context else "length"
            self.messages.append({"role": "assistant", "content": self._text(turn_ids)})
            return
        turn = self._read(self._text(turn_ids))
        said = turn.message(self.account.calls)
        self.messages.append(said)
        if turn.calls:
            follows = await self._results(turn.calls)
        else:
            follows = await self._response(turn.content)
        self.messages += follows
        if self.ending is not None:
            return
        more = self.template.continuation(said, follows)
        # Where nothing can be answered any more, what stands behind the turn is left out.
        if len(more) >= self._context_room:
            self.ending = "context"
        elif len(self.response_ids) + len(more) >= self.limits.response:
            self.ending = "length"
        else:
            self._add(more, student=False)

    async def finish(self) -> None:
        """Ask the environment for :attr:`figures`, and close it.

        Raises:
            UserCodeError: it raised, or its figures are no numbers.
        """
        try:
            # A record shows what was said, whatever the environment makes of its own.
            messages = copy.deepcopy(self.messages)
            self.figures = await self._own(
                "verify", self.environment.verify, messages, read=as_figures
            )
            await self._own("close", self.environment.close)
        except _Hangs:
            # Most likely in a tool that was given up: there is nothing more to be had of it.
            self.account.timeout += not self.account.timeout
        finally:
            self._busy.close()

    async def leave(self) -> None:
        """Close the environment of a rollout that is given up: nobody asks for its figures.

        Raises:
            UserCodeError: it raised.
        """
        try:
            with suppress(_Hangs):
                await self._own("close", self.environment.close)
        finally:
            self._busy.close()

    def arrays(self) -> dict[str, np.ndarray]:
        """Response tokens, mask and turns, [m] each."""
        return {
            "response_ids": np.array(self.response_ids, dtype=np.int32),
            "response_mask": np.array(self.response_mask, dtype=np.uint8),
            "turns": np.array(self.turns, dtype=np.int16),
        }

    def _read(self, text: str) -> AssistantTurn:
        """The turn taken apart; where there are no tools, nothing in it is a call."""
        if not self.template.tools:
            return AssistantTurn(text, ())
        with users_code(f"{self.place}: its parser"):
            return self.parser.parse(text, self.template.tools)

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
            name = call_id(self.account.calls)
            self.account.calls += 1
            result = await self._answer(call)
            message: Message = {
                "role": "tool",
                "tool_call_id": name,
                "content": self._readable(result.text),
            }
            if isinstance(call, ToolCall):
                message["name"] = plain(call.name, self.template)
            follows.append(message)
            if result.done:
                self.ending = "stop"
        return follows

    async def _response(self, text: str) -> list[Message]:
        """What an environment says to a turn without a call."""
        if not isinstance(self.environment, Responds):
            self.ending = "stop"
            return []
        try:
            follows: list[Message] | None = await self._own(
                "respond", self.environment.respond, text, read=as_follow_up
            )
        except _Hangs:
            self.account.timeout += 1
            self.ending = "tool_limit"  # nothing more can be had of it
            return []
        if follows is None:
            self.ending = "stop"
            return []
        if self._turn >= self.limits.turns:
            self.ending = "turns"
        return [{**message, "content": self._readable(message["content"])} for message in follows]

    async def _answer(self, call: ToolCall | BadCall) -> ToolResult:
        """The result of a call, or why there is none, which the student reads in its place."""
        if isinstance(call, BadCall):
            self.account.parse_error += 1
            return ToolResult(f"error: {call.problem}")
        names = [tool["function"]["name"] for tool in self.template.tools]
        if call.name not in names:
            self.account.unknown += 1
            return ToolResult(
                f"error: there is no tool {call.name!r:.200}; there are {', '.join(names)}"
            )
        begin = time.perf_counter()
        try:
            result: ToolResult = await self.runner.call(
                self._busy,
                self.environment.call_tool,
                call.name,
                call.arguments,
                read=as_tool_result,
            )
            return result
        except TooManyHang:
            raise
        except NoAnswer as late:
            self.account.timeout += 1
            return ToolResult(f"error: {late}")
        except CallFailed as error:
            self.account.failed += 1
            return ToolResult(f"error: {error}")
        except Exception as error:
            # Part of the world that the student acts in: it reads what the tool says.
            self.account.failed += 1
            return ToolResult(f"error: {first_line(error)}")
        finally:
            self.account.tool_seconds += time.perf_counter() - begin

    async def _own(
        self,
        said: str,
        method: Callable[..., Any],
        *args: Any,
        read: Callable[[Any], Any] = lambda outcome: outcome,
    ) -> Any:
        """What a method beside the tools returns, read by ``read``; what is raised ends the run."""
        place = f"{self.place}: {said}"
        try:
            with users_code(place):
                return await self.runner.call(self._busy, method, *args, read=read)
        except NoAnswer as late:
            raise _Hangs(
                f"{place}: {late}: make it faster, or raise environment.call_timeout_s"
            ) from late

    def _readable(self, text: str) -> str:
        """A result as the student is shown it, cut to ``result_tokens``."""
        words, cut = shortened(text, self.template, self.limits.result_tokens)
        self.account.cut += cut
        return words

    def _text(self, turn_ids: Sequence[int]) -> str:
        """A turn with its special tokens, without the one that ended it."""
        ends = turn_ids and turn_ids[-1] in self.template.end_ids
        return self.template.tokenizer.decode(turn_ids[:-1] if ends else turn_ids)

    def _add(self, ids: Sequence[int], *, student: bool) -> None:
        self.response_ids += ids
        self.response_mask += [int(student)] * len(ids)
        self.turns += [self._turn if student else self._turn - 1] * len(ids)
