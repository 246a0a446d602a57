"""The environments of a run: which prompts have one, made and read as the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings
from opd_ray.environments.calls import CallParser
from opd_ray.environments.environment import Environment, ToolSchema
from opd_ray.environments.load import EnvironmentFactory, environment_factory
from opd_ray.environments.parsers.registry import get_parser
from opd_ray.environments.runner import Busy, EnvironmentRunner, NoAnswer
from opd_ray.environments.tool_class import ToolClass
from opd_ray.environments.tool_list import list_problems
from opd_ray.errors import ConfigError
from opd_ray.user_code import users_code

# Seconds that the first environment of a process may take to be made.
_FIRST_SECONDS = 300.0


@dataclass
class RunEnvironment:
    """One of the environments of a run.

    Raises:
        ConfigError: there is none at its path, or no such parser.
    """

    settings: EnvironmentSettings  # its path is not null
    key: str  # of its section in the configuration

    def __post_init__(self) -> None:
        self.make: EnvironmentFactory = environment_factory(
            str(self.settings.path), self.settings.arguments, f"{self.key}.path"
        )
        self.parser: CallParser = get_parser(self.settings.parser, f"{self.key}.parser")

    @property
    def place(self) -> str:
        """What messages call it."""
        return f"{self.key}.path = {self.settings.path!r}"

    @cached_property
    def tools(self) -> Sequence[ToolSchema]:
        """Of all of its instances; one is made to be asked.

        Raises:
            ConfigError: what it calls tools is no list of schemas.
            UserCodeError: it cannot be made.
        """
        return list(self._shown.tools)

    @cached_property
    def responds(self) -> bool:
        """Whether it may answer turns without a call."""
        return self._shown.responds

    @cached_property
    def columns(self) -> Sequence[str]:
        """Of a row, those that it cannot be reset without, as far as it says."""
        return self._shown.columns

    @cached_property
    def _shown(self) -> _Shown:
        each = self.settings.call_timeout_s
        # The first one of a process may have much to load; a later one has the time of any call.
        longest = max(_FIRST_SECONDS, each)
        busy = Busy()
        with users_code(self.place):
            try:
                made: Environment = _called(busy, self.make, longest)
                shown: _Shown = _called(busy, lambda: _Shown.of(made), longest)
            except NoAnswer as late:
                raise ConfigError(
                    f"{self.place}: one was made to be asked for its tools, and has not come back "
                    f"in {longest:.0f} s: let it begin faster"
                ) from late
            with suppress(NoAnswer):  # as at the end of a rollout
                _called(busy, made.close, each)
        busy.close()
        if problems := list(list_problems(shown.tools)):
            raise ConfigError("\n".join(f"{self.place}: {problem}" for problem in problems))
        return shown


def _called(busy: Busy, function: Callable[[], Any], seconds: float) -> Any:
    """What it returns, in time, and raises.

    Raises:
        NoAnswer: it takes longer.
    """
    runner = EnvironmentRunner(1, seconds)
    runner.start("", lambda: runner.call(busy, function))
    _, outcome = runner.ended.get()
    runner.close()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@dataclass(frozen=True)
class _Shown:
    """What an environment shows of itself before it is reset."""

    tools: Any
    responds: bool
    columns: Sequence[str]

    @classmethod
    def of(cls, made: Environment) -> _Shown:
        return cls(
            made.tools,
            callable(getattr(made, "respond", None)),
            made.columns if isinstance(made, ToolClass) else (),
        )


class RunEnvironments:
    """All environments of a run, each made known once: when its source is first asked for."""

    def __init__(self, settings: EnvironmentSet) -> None:
        self._settings = settings
        self._by_key: dict[str, RunEnvironment] = {}

    @property
    def any(self) -> bool:
        """Whether any prompt may have one."""
        return self._settings.any

    def of(self, source: str) -> RunEnvironment | None:
        """That of prompts of a source; None: their responses are one turn."""
        key, settings = self._settings.of(source)
        if settings.path is None:
            return None
        if key not in self._by_key:
            self._by_key[key] = RunEnvironment(settings, key)
        return self._by_key[key]

    def tools_of(self, source: str) -> Sequence[ToolSchema] | None:
        """The tools that prompts of a source are shown; None: they have no environment."""
        found = self.of(source)
        return None if found is None else found.tools

    def columns_of(self, source: str) -> Sequence[str]:
        """The columns that rows of a source need for their environment."""
        found = self.of(source)
        return () if found is None else found.columns


# Of a run in which every response is one turn.
NO_ENVIRONMENTS = RunEnvironments(EnvironmentSet(EnvironmentSettings(), {}))
