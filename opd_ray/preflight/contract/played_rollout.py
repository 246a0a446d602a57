"""A rollout played on an environment without a student: what was asked, and what came of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opd_ray.borders import first_line
from opd_ray.environments.environment import Environment, Message
from opd_ray.environments.runner import Busy, EnvironmentRunner, NoAnswer, TooManyHang
from opd_ray.environments.tool_class import as_tool_result
from opd_ray.environments.tool_list import repr_of, shortened
from opd_ray.errors import is_known
from opd_ray.user_code import place_of

Calls = Sequence[tuple[str, dict[str, Any]]]  # of tools by name, with their arguments


@dataclass(frozen=True)
class Step:
    """One call into an environment."""

    what: str  # as a person would write it
    method: str  # of the environment
    value: Any = None  # what came back
    text: str = ""  # of a tool, what the student reads
    error: Exception | None = None
    unreadable: bool = False  # the error is that what came back is no result

    @property
    def late(self) -> bool:
        """Whether it was given up for its time."""
        return isinstance(self.error, NoAnswer)

    @property
    def tool(self) -> str:
        """Of a call, which tool's."""
        return self.what.partition("(")[0]

    @property
    def half_characters(self) -> bool:
        """Whether a tool's result holds any."""
        return self.text != self.text.encode(errors="replace").decode()

    @property
    def outcome(self) -> Any:
        """What two equal rollouts have in common."""
        if self.method == "make":
            return None
        if self.method == "call_tool":
            return self.text
        # As text: values may be of types that cannot be compared, and nan is not equal to itself.
        return repr_of(self.value), type(self.error)


@dataclass
class PlayedRollout:
    """An instance, and the steps that were taken with it.

    Args:
        runner: makes the calls.
        make: the instance.
    """

    runner: EnvironmentRunner
    make: Callable[[], Environment]
    environment: Any = None
    tools: Any = None
    steps: list[Step] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    _busy: Busy = field(default_factory=Busy)

    async def begin(self, row: Mapping[str, Any]) -> None:
        """Make the instance and reset it."""
        made = await self._step("the constructor", "make", self.make)
        self.environment = made.value
        if made.error is None:
            shown = await self._step("tools", "tools", lambda: self.environment.tools)
            self.tools = shown.value
            await self.reset(row)

    async def reset(self, row: Mapping[str, Any]) -> None:
        """Reset it, perhaps once more."""
        # As in a run, it may write into what it is given.
        given = copy.deepcopy(dict(row))
        step = await self._step("reset", "reset", self.environment.reset, given)
        self.messages = list(step.value) if isinstance(step.value, list | tuple) else []

    async def call(self, name: str, arguments: dict[str, Any]) -> None:
        """Call a tool; what the student would read is kept."""
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        what = shortened(f"{name}({given})")
        step = await self._step(
            what, "call_tool", self.environment.call_tool, name, dict(arguments), read=True
        )
        self.messages.append({"role": "assistant", "content": what})
        self.messages.append({"role": "tool", "name": name, "content": step.text})

    async def end(self) -> None:
        """A turn without a call, the figures, and the end, which comes twice."""
        if callable(getattr(self.environment, "respond", None)):
            await self._step("respond('Done.')", "respond", self.environment.respond, "Done.")
        self.messages.append({"role": "assistant", "content": "Done."})
        await self._step("verify", "verify", self.environment.verify, list(self.messages))
        for what in ("close", "close, called a second time,"):
            await self._step(what, "close", self.environment.close)

    @property
    def gone(self) -> bool:
        """Whether nothing more is to be asked of it: it is not there, or does not come back."""
        return self.environment is None or any(step.late for step in self.steps)

    async def _step(
        self, what: str, method: str, function: Callable[..., Any], *args: Any, read: bool = False
    ) -> Step:
        value, text, error, unreadable = None, "", None, False
        try:
            value = await self.runner.call(self._busy, function, *args)
        except TooManyHang:
            raise
        except Exception as raised:
            error = raised
        if read and error is None:
            try:
                text = as_tool_result(value).text
            except Exception as raised:
                error, unreadable = raised, True
        if read and error is not None:
            text = _error_text(error)
        step = Step(what, method, value, text, error, unreadable)
        self.steps.append(step)
        return step


def said_of(error: Exception) -> str:
    """An error of the user's code with its place there."""
    return str(error) if is_known(error) else f"{first_line(error)}{place_of(error)}"


def _error_text(error: Exception) -> str:
    return f"error: {error if isinstance(error, NoAnswer) else first_line(error)}"


async def play(played: PlayedRollout, row: Mapping[str, Any], calls: Calls) -> PlayedRollout:
    """A whole rollout with these calls; it ends early where a call does not come back."""
    await played.begin(row)
    for name, arguments in calls:
        if not played.gone:
            await played.call(name, arguments)
    if not played.gone:
        await played.end()
    return played


async def play_in_turn(
    first: PlayedRollout,
    second: PlayedRollout,
    rows: Sequence[Mapping[str, Any]],
    calls: Sequence[Calls],
) -> None:
    """Two whole rollouts, a step of the one after a step of the other."""
    both = (first, second)
    for played, row in zip(both, rows, strict=True):
        await played.begin(row)
    for number in range(max(map(len, calls))):
        for played, own in zip(both, calls, strict=True):
            if number < len(own) and not played.gone:
                await played.call(*own[number])
    for played in both:
        if not played.gone:
            await played.end()
