"""The processes of an environment as the rollout actor sees them: as many as there are rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.environment.host import Answer, EnvironmentActor
from opd_ray.config.environment import EnvironmentSettings
from opd_ray.environments.environment import Message, ToolResult, ToolSchema
from opd_ray.environments.runner import CallFailed, CallTimeout, EnvironmentGone, bounded
from opd_ray.errors import RunError
from opd_ray.user_code import UserCodeError

# Nothing but imports happens meanwhile; Ray starts about as many processes at once as there are
# cores.
_START_SECONDS = 600.0


class EnvironmentProcesses:
    """Processes that are started when they are needed, and used by one rollout after another.

    Only ever used in one event loop.

    Args:
        settings: of the environment.
        key: of its section in the configuration.
        tools: that it has.
        responds: whether it has a method ``respond``.
        most: processes at once; further rollouts wait.
    """

    def __init__(
        self,
        settings: EnvironmentSettings,
        key: str,
        tools: Sequence[ToolSchema],
        responds: bool,
        most: int,
    ) -> None:
        self.call_seconds = settings.call_timeout_s
        self.place = f"{key}.path = {settings.path!r}"
        self._given = (settings.path, settings.arguments, f"{key}.path", list(tools))
        self._tools, self._responds = tools, responds
        self._free = asyncio.Semaphore(most)
        self._idle: list[Any] = []

    def make(self) -> RemoteEnvironment:
        """An environment for one rollout; it takes a process when it is reset."""
        kind = RespondingRemoteEnvironment if self._responds else RemoteEnvironment
        return kind(self, self._tools)

    async def take(self) -> Any:
        """The handle of a process without a rollout.

        Raises:
            UserCodeError: the environment cannot be imported there.
            RunError: the process does not start.
        """
        await self._free.acquire()
        if self._idle:
            return self._idle.pop()
        handle = self._start()
        try:
            async with asyncio.timeout(_START_SECONDS):
                answer: Answer = await handle.ready.remote()
        except TimeoutError:
            raise RunError(
                f"{self.place}: its process did not start within {_START_SECONDS:.0f} s; lower "
                "environment.concurrent_rollouts, or set environment.own_process=false"
            ) from None
        except RayActorError as error:
            raise RunError(f"{self.place}: its process ended while it started: {error}") from error
        if answer.raised is not None:
            raise UserCodeError(answer.raised)
        return handle

    def give_back(self, handle: Any) -> None:
        """Let the next rollout have it."""
        self._idle.append(handle)
        self._free.release()

    def end(self, handle: Any) -> None:
        """End the process, whatever it does; the next rollout gets a new one."""
        ray.kill(handle)
        self._free.release()

    def _start(self) -> Any:
        # Beside its engine, where files and a GPU's memory are the same.
        here = ray.get_runtime_context().get_node_id()
        return EnvironmentActor.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
            # Of the engine it would inherit threads that are the engine's share of the cores.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        ).remote(*self._given)


class RemoteEnvironment:
    """One rollout's environment in a process of its own; see the protocol ``Environment``.

    A call that takes too long ends the process, as does one that crashes it. Every later call says
    that the environment is gone.
    """

    def __init__(self, processes: EnvironmentProcesses, tools: Sequence[ToolSchema]) -> None:
        self.tools = tools
        self._processes = processes
        self._process: Any = None

    @bounded
    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Take a process; see the protocol.

        Raises:
            UserCodeError: the environment cannot be made, raised, or ends its process twice.
            CallTimeout: it takes longer than it may.
        """
        self._process = await self._processes.take()
        try:
            return await self._told("reset", dict(row))
        except EnvironmentGone:
            # A process that was idle may have ended since.
            self._process = await self._processes.take()
        try:
            return await self._told("reset", dict(row))
        except EnvironmentGone as error:
            raise UserCodeError(f"{self._processes.place}: reset: {error}, twice") from error

    @bounded
    async def call_tool(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """See the protocol.

        Raises:
            CallFailed: the tool raised.
            CallTimeout: it takes longer than it may.
            EnvironmentGone: the process has ended.
        """
        answer = await self._ask("call_tool", name, arguments)
        if answer.raised is not None:
            raise CallFailed(answer.raised)
        result: ToolResult = answer.value
        return result

    @bounded
    async def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        """See the protocol; raises as :meth:`call_tool`, but ``UserCodeError``."""
        return await self._told("verify", list(messages))

    @bounded
    async def close(self) -> None:
        """Close the environment and give its process back; raises as :meth:`verify`."""
        if self._process is None:
            return
        await self._told("close")
        process, self._process = self._process, None
        self._processes.give_back(process)

    async def _told(self, method: str, *args: Any) -> Any:
        answer = await self._ask(method, *args)
        if answer.raised is not None:
            raise UserCodeError(answer.raised)
        return answer.value

    async def _ask(self, method: str, *args: Any) -> Answer:
        if self._process is None:
            raise EnvironmentGone("the environment is gone: its process has ended")
        seconds, answered = self._processes.call_seconds, False
        asked = self._process.answer.remote(method, *args)
        try:
            async with asyncio.timeout(seconds):
                answer: Answer = await asked
            answered = True
            return answer
        except TimeoutError:
            raise CallTimeout.after(seconds) from None
        except RayActorError as error:
            raise EnvironmentGone(f"the environment's process ended ({_why(error)})") from error
        finally:
            if not answered:  # a rollout that is cancelled leaves no process behind either
                process, self._process = self._process, None
                self._processes.end(process)


class RespondingRemoteEnvironment(RemoteEnvironment):
    """One whose environment answers turns without a call."""

    @bounded
    async def respond(self, text: str) -> list[Message] | None:
        """See the protocol ``Responds``; raises as :meth:`verify`."""
        messages: list[Message] | None = await self._told("respond", text)
        return messages


def _why(error: RayActorError) -> str:
    """How Ray says that a process ended, without what it says of Ray."""
    _, found, detail = str(error).partition("Worker exit detail: ")
    return detail.split(".")[0] if found else "killed, or never started"
