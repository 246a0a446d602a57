"""The process of an environment: one rollout's after the other's. No torch in here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray

from opd_ray.borders import first_line
from opd_ray.environments.answers import as_figures, as_follow_up, as_messages
from opd_ray.environments.environment import Environment, ToolSchema
from opd_ray.environments.load import EnvironmentFactory, environment_factory
from opd_ray.environments.runner import Busy, Outcome
from opd_ray.environments.tool_class import as_tool_result
from opd_ray.errors import OpdError
from opd_ray.user_code import users_code


@dataclass(frozen=True)
class Answer:
    """What a method returned as plain data, or what it raised in words."""

    value: Any = None
    raised: str | None = None


class EnvironmentHost:
    """Makes an environment for every rollout, and calls its methods.

    Whatever these raise, even ``SystemExit``, is an answer: only a process that ends gives none.

    Args:
        path: "package.module:object" of the environment.
        arguments: of the class or function.
        key: the configuration key that holds the path, for messages.
        tools: that it has, as the process found that checked it.
    """

    def __init__(
        self, path: str, arguments: Mapping[str, Any], key: str, tools: Sequence[ToolSchema]
    ) -> None:
        self._path, self._arguments, self._key, self._tools = path, arguments, key, tools
        self._environment: Environment | None = None
        self._calls = Busy()

    def ready(self) -> Answer:
        """Import the environment."""
        outcome = Outcome.of(lambda: self._factory)
        return self._told(outcome, "import")

    def answer(self, method: str, *args: Any) -> Answer:
        """Call a method of the environment; ``reset`` makes a new one before."""
        outcome = Outcome.of(lambda: _PLAIN[method](self._call(method, args)))
        if method != "call_tool":
            return self._told(outcome, method)
        try:
            return Answer(outcome.get())
        except Exception as error:
            return Answer(raised=first_line(error))

    def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        if method == "reset":
            # What the last one has left in context variables and event loop is none of this one's.
            self._calls.close()
            self._calls = Busy()
            self._environment = self._factory()
        return self._calls.run(getattr(self._environment, method), args)

    @cached_property
    def _factory(self) -> EnvironmentFactory:
        return environment_factory(self._path, self._arguments, self._key, self._tools)

    def _told(self, outcome: Outcome, method: str) -> Answer:
        try:
            with users_code(f"{self._key} = {self._path!r}: {method}"):
                value = outcome.get()
        except OpdError as error:
            return Answer(raised=str(error))
        return Answer(None if method == "import" else value)


# Of JSON's kinds, so that nothing of the environment's own classes is needed where it is read.
def _json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"it is no JSON: {error}") from None


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "reset": lambda messages: _json(as_messages(messages)),
    "call_tool": as_tool_result,
    "respond": lambda messages: _json(as_follow_up(messages)),
    "verify": as_figures,
    "close": lambda nothing: None,
}

# It takes no CPU of the cluster: most of the time it waits for a call, and the placement of a run
# has shared out the CPUs. One that ends is not started again by Ray: its state is lost.
EnvironmentActor = ray.remote(num_cpus=0, max_restarts=0)(EnvironmentHost)
