"""``opd-ray check-environment``: does an environment keep what a run relies on?

Rollouts are played without a student: random calls by the schemas, wrong ones, the same on another
instance, two at once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

from opd_ray.config.environment import EnvironmentSettings
from opd_ray.environments.environment import Environment, ToolSchema
from opd_ray.environments.load import environment_factory
from opd_ray.environments.parsers.registry import get_parser
from opd_ray.environments.runner import EnvironmentRunner
from opd_ray.environments.tool_class import ToolClass
from opd_ray.environments.tool_list import list_problems, shortened
from opd_ray.environments.turns import TurnTemplate
from opd_ray.preflight.contract.parsed_calls import parser_problems
from opd_ray.preflight.contract.played_rollout import (
    Calls,
    PlayedRollout,
    Step,
    play,
    play_in_turn,
    said_of,
)
from opd_ray.preflight.contract.step_problems import step_problems
from opd_ray.preflight.contract.tool_arguments import random_calls, wrong_arguments
from opd_ray.preflight.contract.tool_schemas import (
    schema_problems,
    signature_of,
    signature_problems,
)
from opd_ray.seeds import derive_seed

_NO_TOOL = "no_such_tool"
Row = Mapping[str, Any]


@dataclass
class EnvironmentReport:
    """What was found out about an environment."""

    tools: list[str] = field(default_factory=list)  # a line each
    read: list[str] = field(default_factory=list)  # a call and what the student reads
    notes: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def check_environment(
    settings: EnvironmentSettings,
    key: str,
    rows: Sequence[Row],
    template: TurnTemplate | None = None,
) -> EnvironmentReport:
    """Play rollouts on the environment at ``settings.path``.

    Args:
        settings: of the environment; its path is not null.
        key: of its section, for messages.
        rows: prompts' rows with all of their columns, at least one; the first two are played.
        template: the student's, whatever its tools; the parser is to read the calls that it writes.
            None: that is not tried.

    Raises:
        ConfigError: nothing at the path that could be an environment, or no such parser.
    """
    make = environment_factory(str(settings.path), settings.arguments, f"{key}.path")
    parser = get_parser(settings.parser, f"{key}.parser")
    runner = EnvironmentRunner(workers=8, call_seconds=settings.call_timeout_s)
    try:
        probe = _Probe(settings, make, runner)
        probe.look_at(rows)
        if probe.sound and template is not None:
            shown = replace(template, tools=probe.tools)
            probe.found |= dict.fromkeys(parser_problems(parser, settings.parser, shown))
    finally:
        runner.close()
    probe.report.violations = list(probe.found)
    probe.report.notes = list(dict.fromkeys(probe.report.notes))
    return probe.report


class _Probe:
    """Plays rollouts on one environment and collects what is wrong with it."""

    def __init__(
        self,
        settings: EnvironmentSettings,
        make: Callable[[], Environment],
        runner: EnvironmentRunner,
    ) -> None:
        self._settings, self._make, self._runner = settings, make, runner
        self.report = EnvironmentReport()
        self.tools: list[ToolSchema] = []
        self.sound = False  # whether anybody could call by them
        self.found: dict[str, None] = {}  # in order, each once
        self._told: set[tuple[str, ...]] = set()

    def look_at(self, rows: Sequence[Row]) -> None:
        """All checks, the later only where the earlier let them say something."""
        seeds = [derive_seed(0, "check-environment", number) for number in range(2)]
        chosen = [
            {**rows[min(number, len(rows) - 1)], "rollout_seed": seed}
            for number, seed in enumerate(seeds)
        ]
        first = self._played()
        self._run(lambda: first.begin(chosen[0]))
        self._judge(first.steps)
        shown = any(step.method == "tools" and step.error is None for step in first.steps)
        self.sound = shown and self._tools_are_sound(first)
        if not self.sound:
            return
        self.tools = tools = list(first.tools)
        again = self._played()
        self._run(lambda: again.begin(chosen[0]))
        self._judge(again.steps)
        if self.found:
            return
        if list(again.tools) != tools:
            self._say("another instance has other tools: they must be the same for all")
        self._reset_again(first, again, chosen[0])
        calls = [
            random_calls(tools, row, Random(seed)) for row, seed in zip(chosen, seeds, strict=True)
        ]
        alone = [self._alone(row, own) for row, own in zip(chosen, calls, strict=True)]
        self._note_results(alone)
        before = len(self.found)
        for played, row, own in zip(alone, chosen, calls, strict=True):
            self._compare(
                played,
                self._alone(row, own),
                "equal rows, seeds and calls give something else on another instance (draws must "
                "come from the row's rollout_seed)",
            )
        if len(self.found) == before and not any(played.gone for played in alone):
            self._at_once(alone, chosen, calls)
        self._wrong_calls(tools, chosen[0])
        self._unused(chosen[0])

    def _tools_are_sound(self, played: PlayedRollout) -> bool:
        """Look at the schemas; false where nobody could call by them."""
        environment = played.environment
        problems = list(list_problems(played.tools))
        self.found |= dict.fromkeys(problems)
        if problems:
            return False
        for tool in played.tools:
            self.report.tools.append(signature_of(tool))
            self.found |= dict.fromkeys(schema_problems(tool))
            # Of a class whose methods are the tools, the schemas are made of the signatures.
            method = getattr(environment, tool["function"]["name"], None)
            if callable(method) and not isinstance(environment, ToolClass):
                for fails, text in signature_problems(tool, method):
                    if fails:
                        self._say(text)
                    else:
                        self.report.notes.append(text)
        return True

    def _reset_again(self, first: PlayedRollout, again: PlayedRollout, row: Row) -> None:
        if first.messages != again.messages:
            self._say(
                "reset gives other messages on another instance with the same row and rollout_seed"
                f": {shortened(first.messages)}, then {shortened(again.messages)}"
            )
            return
        self._run(lambda: again.reset(row))
        self._judge(again.steps[-1:])
        if again.steps[-1].error is None and first.messages != again.messages:
            self._say(
                "reset gives other messages when the same instance is reset once more: "
                f"{shortened(first.messages)}, then {shortened(again.messages)}"
            )

    def _alone(self, row: Row, calls: Calls) -> PlayedRollout:
        played = self._played()
        self._run(lambda: play(played, row, calls))
        self._judge(played.steps)
        return played

    def _at_once(
        self, alone: Sequence[PlayedRollout], rows: Sequence[Row], calls: Sequence[Calls]
    ) -> None:
        """Two rollouts at once come to what each comes to alone."""
        shared = "beside another instance it gives something else: they share state"
        one, other = self._played(), self._played()
        self._run(lambda: play_in_turn(one, other, rows, calls))
        before = len(self.found)
        for played, expected in zip((one, other), alone, strict=True):
            self._compare(expected, played, shared)
        if len(self.found) > before:
            return
        both = [self._played(), self._played()]
        for number in range(2):
            work = partial(play, both[number], rows[number], calls[number])
            self._runner.start(str(number), work)
        for _ in both:
            self._wait()
        for played, expected in zip(both, alone, strict=True):
            self._compare(expected, played, f"in another thread {shared}")

    def _wrong_calls(self, tools: Sequence[Mapping[str, Any]], row: Row) -> None:
        """Calls that a student should not write: what is raised it reads, but nothing may hang."""
        played = self._played()
        self._run(lambda: played.begin(row))
        rng = Random(derive_seed(0, "check-environment", "wrong"))
        for tool in tools:
            function = tool["function"]
            wrong = list(wrong_arguments(function.get("parameters", {}), rng))
            for number, arguments in enumerate(wrong):
                self._call(played, function["name"], arguments, show=number == 0)
        if not isinstance(played.environment, ToolClass):
            # A run answers these itself; yet an environment should survive them.
            self._call(played, _NO_TOOL, {}, show=False)
        if not played.gone:
            self._run(played.end)

    def _call(
        self, played: PlayedRollout, name: str, arguments: dict[str, Any], *, show: bool
    ) -> None:
        if played.gone:
            return
        self._run(lambda: played.call(name, arguments))
        step = played.steps[-1]
        self._judge([step])
        if show:
            self._show(step)

    def _unused(self, row: Row) -> None:
        """A rollout may end before anything is called."""
        played = self._played()
        self._run(lambda: play(played, row, []))
        self._judge(played.steps)

    def _judge(self, steps: Sequence[Step]) -> None:
        """What single calls break."""
        for step in steps:
            for once, text in step_problems(step, self._settings.call_timeout_s):
                self._say(text, *once)
            if step.half_characters:
                self.report.notes.append(
                    f"{step.tool} returns half characters (surrogates): the student reads ? in "
                    "their place"
                )

    def _compare(self, one: PlayedRollout, other: PlayedRollout, what: str) -> None:
        """The first step in which two rollouts part."""
        for mine, theirs in zip(one.steps, other.steps, strict=False):
            if mine.late or theirs.late:
                return
            if mine.outcome != theirs.outcome:
                parted = f"{mine.what}: {_shown(mine)}, then {_shown(theirs)}"
                self._say(f"{what}: {parted}", what)
                return

    def _note_results(self, alone: Sequence[PlayedRollout]) -> None:
        steps = [s for played in alone for s in played.steps if s.method == "call_tool"]
        longest: dict[str, int] = {}
        shown: set[tuple[str, bool]] = set()  # of every tool a call, and one that it raised at
        for step in steps:
            kind = (step.tool, step.error is None)
            if kind not in shown:
                self._show(step)
            shown.add(kind)
            longest[step.tool] = max(longest.get(step.tool, 0), len(step.text))
        most = self._settings.max_result_tokens
        for name, length in longest.items():
            if length > 4 * most:  # a token of plain text has about four characters
                self.report.notes.append(
                    f"{name} returns up to {length:,} characters: what is beyond "
                    f"max_result_tokens = {most} is cut, and the result says so"
                )
        for name in longest:
            own = [step for step in steps if step.tool == name]
            if all(step.error is not None for step in own):
                self.report.notes.append(
                    f"{name} raised at each of {len(own)} calls with random arguments by its "
                    "schema; the student reads what it raises"
                )

    def _show(self, step: Step) -> None:
        self.report.read.append(f"{step.what} -> {shortened(step.text)}")

    def _say(self, text: str, *once: str) -> None:
        """Add a violation; ``once`` names what it is not told of again."""
        if once in self._told:
            return
        if once:
            self._told.add(once)
        self.found[text] = None

    def _played(self) -> PlayedRollout:
        return PlayedRollout(self._runner, self._make)

    def _run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._runner.start("", work)
        self._wait()

    def _wait(self) -> None:
        """Until what was started has ended; every call in there is bounded in time."""
        _, outcome = self._runner.ended.get()
        if isinstance(outcome, Exception):
            raise outcome


def _shown(step: Step) -> str:
    if step.error is not None and step.method != "call_tool":
        return f"raised {said_of(step.error)}"
    return shortened(repr(step.text) if step.method == "call_tool" else step.value)
