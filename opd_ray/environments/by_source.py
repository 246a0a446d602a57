"""The environments of a run: which prompts have one, made and read as the configuration says."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings
from opd_ray.environments.calls import CallParser
from opd_ray.environments.environment import ToolSchema
from opd_ray.environments.load import EnvironmentFactory, environment_factory
from opd_ray.environments.parsers.registry import get_parser
from opd_ray.environments.tool_class import ToolClass
from opd_ray.environments.tool_list import list_problems
from opd_ray.errors import ConfigError
from opd_ray.user_code import users_code


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
        return self._shown[0]

    @cached_property
    def responds(self) -> bool:
        """Whether it may answer turns without a call."""
        return self._shown[1]

    @cached_property
    def columns(self) -> Sequence[str]:
        """Of a row, those that it cannot be reset without, as far as it says."""
        return self._shown[2]

    @cached_property
    def _shown(self) -> tuple[list[ToolSchema], bool, Sequence[str]]:
        with users_code(self.place):
            made = self.make()
            tools: Any = made.tools
            responds = callable(getattr(made, "respond", None))
            columns = made.columns if isinstance(made, ToolClass) else ()
            closed: Any = made.close()
            if inspect.isawaitable(closed):
                asyncio.run(_awaited(closed))
        if problems := list(list_problems(tools)):
            raise ConfigError("\n".join(f"{self.place}: {problem}" for problem in problems))
        return list(tools), responds, columns


async def _awaited(result: Any) -> Any:
    return await result


class RunEnvironments:
    """All environments of a run; equal settings are one."""

    def __init__(self, settings: EnvironmentSet) -> None:
        self._settings = settings
        self._by_key: dict[str, RunEnvironment] = {}

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
