"""Environments in processes of their own: what happens there stays there."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import unruly
from chat_tokenizer import END, call, chat_tokenizer

from actors.environment.host import EnvironmentActor
from actors.environment.processes import EnvironmentProcesses
from opd_ray.config.environment import EnvironmentSettings
from opd_ray.environments.environment import Responds, ToolResult
from opd_ray.environments.episode import Episode, EpisodeLimits
from opd_ray.environments.parsers.hermes import HermesParser
from opd_ray.environments.runner import (
    Busy,
    CallFailed,
    CallTimeout,
    EnvironmentGone,
    EnvironmentRunner,
)
from opd_ray.environments.turns import TurnTemplate
from opd_ray.user_code import UserCodeError

ROW = {"prompt": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    folders = ":".join([str(Path(unruly.__file__).parent), *filter(None, sys.path)])
    ray.init(
        address="local",
        num_cpus=1,  # environments take none of it
        include_dashboard=False,
        object_store_memory=1 << 27,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": folders}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def runner() -> Iterator[EnvironmentRunner]:
    found = EnvironmentRunner(workers=1, call_seconds=0.001)
    yield found
    found.close()


class Rollout:
    """An environment of a rollout whose methods block."""

    def __init__(self, runner: EnvironmentRunner, processes: EnvironmentProcesses) -> None:
        self.environment = processes.make()
        self._runner, self._busy = runner, Busy()

    def begin(self, method: str, *args: Any) -> None:
        call = getattr(self.environment, method)
        self._runner.start(method, lambda: self._runner.call(self._busy, call, *args))

    def __call__(self, method: str, *args: Any) -> Any:
        self.begin(method, *args)
        return self._runner.ended.get(timeout=120)[1]

    def process(self) -> int:
        return json.loads(self("call_tool", "do", {"what": "where"}).text)["process"]


def processes(
    name: str = "Talking", most: int = 2, seconds: float = 30, **arguments: Any
) -> EnvironmentProcesses:
    settings = EnvironmentSettings(
        path=f"unruly:{name}", arguments=arguments, call_timeout_s=seconds
    )
    return EnvironmentProcesses(settings, "environment", [unruly.DO], name == "Talking", most)


@pytest.fixture(scope="module")
def shared() -> EnvironmentProcesses:
    return processes()


def test_calls_and_figures_come_back_and_the_process_is_used_again(runner, shared) -> None:
    first, second = Rollout(runner, shared), Rollout(runner, shared)
    assert isinstance(first.environment, Responds)
    assert not isinstance(processes("Unruly").make(), Responds)
    assert first.environment.tools == [unruly.DO]
    assert first("reset", ROW) == [*ROW["prompt"], {"role": "user", "content": "Go on."}]
    assert second("reset", ROW)[-1] == {"role": "user", "content": "Go on."}
    assert first("call_tool", "do", {"what": ""}) == ToolResult("call 1")
    assert first("call_tool", "do", {"what": "done"}) == ToolResult("all of it", done=True)
    assert first("respond", "so") == [{"role": "user", "content": "You said so"}]
    assert first("verify", ROW["prompt"]) == {"calls": 2.0}
    process, other = first.process(), second.process()
    assert process != other
    assert first("close") is None
    third = Rollout(runner, shared)
    assert third("reset", ROW)[-1] == {"role": "user", "content": "Go on."}
    assert third.process() == process
    assert third("call_tool", "do", {"what": ""}) == ToolResult("call 2")
    second("close"), third("close")


def test_a_process_has_no_torch(runner, shared) -> None:
    rollout = Rollout(runner, processes("Here"))
    rollout("reset", ROW)
    assert json.loads(rollout("call_tool", "do", {"what": ""}).text)["torch"] is False


@pytest.mark.parametrize(("how", "said"), [("raise", "KeyError: 'no'"), ("leave", "SystemExit: 3")])
def test_a_tool_that_raises_goes_on(runner, shared, how: str, said: str) -> None:
    rollout = Rollout(runner, shared)
    rollout("reset", ROW)
    failed = rollout("call_tool", "do", {"what": how})
    assert isinstance(failed, CallFailed)
    assert str(failed).removeprefix("RuntimeError: ") == said
    assert rollout("call_tool", "do", {"what": ""}) == ToolResult("call 2")
    rollout("close")


@pytest.mark.parametrize("how", ["exit", "crash"])
def test_a_crash_costs_its_rollout_alone(runner, shared, how: str) -> None:
    rollout, other = Rollout(runner, shared), Rollout(runner, shared)
    rollout("reset", ROW), other("reset", ROW)
    gone = rollout("call_tool", "do", {"what": how})
    assert isinstance(gone, EnvironmentGone)
    assert str(gone).startswith("the environment's process ended (")
    for method, args in (("call_tool", ("do", {})), ("respond", ("so",)), ("verify", ([],))):
        again = rollout(method, *args)
        assert repr(again) == ("EnvironmentGone('the environment is gone: its process has ended')")
    assert rollout("close") is None
    assert other("call_tool", "do", {"what": ""}) == ToolResult("call 1")
    later = Rollout(runner, shared)  # in a new process: two may run
    later("reset", ROW)
    assert later("call_tool", "do", {"what": ""}) == ToolResult("call 1")
    other("close"), later("close")


def test_a_hang_is_ended_and_its_place_is_taken(runner) -> None:
    one = processes(most=1, seconds=2)
    rollout, waiting = Rollout(runner, one), Rollout(runner, one)
    rollout("reset", ROW)
    process = rollout.process()
    waiting.begin("reset", ROW)
    late = rollout("call_tool", "do", {"what": "hang"})
    assert repr(late) == ("CallTimeout('it took longer than environment.call_timeout_s = 2')")
    assert runner.ended.get(timeout=120)[1][-1] == {"role": "user", "content": "Go on."}
    assert waiting.process() != process
    assert isinstance(rollout("verify", []), EnvironmentGone)
    waiting("close")


def test_an_idle_process_that_has_ended_is_replaced(runner) -> None:
    one = processes(most=1)
    rollout = Rollout(runner, one)
    rollout("reset", ROW)
    rollout("close")
    ray.kill(one._idle[0])
    again = Rollout(runner, one)
    assert again("reset", ROW)[-1] == {"role": "user", "content": "Go on."}
    again("close")


def test_what_ends_the_run_names_the_environment(runner) -> None:
    ends = Rollout(runner, processes(at_start="exit"))("reset", ROW)
    assert isinstance(ends, UserCodeError)
    assert str(ends).startswith(
        "environment.path = 'unruly:Talking': reset: the environment's process ended ("
    )
    assert str(ends).endswith("), twice")
    raises = Rollout(runner, processes(at_start="raise"))("reset", ROW)
    assert isinstance(raises, UserCodeError)
    assert str(raises).startswith("environment.path = 'unruly:Talking': KeyError: 'no' (")
    nowhere = Rollout(runner, processes("Nobody"))("reset", ROW)
    assert isinstance(nowhere, UserCodeError)
    assert "unruly has no 'Nobody'" in str(nowhere)
    hangs = Rollout(runner, processes(at_start="hang", seconds=2))("reset", ROW)
    assert isinstance(hangs, CallTimeout)


def test_a_run_that_ends_leaves_no_process_that_hangs(shared) -> None:
    runner = EnvironmentRunner(workers=1, call_seconds=1)
    one = processes(most=1, seconds=3600)
    rollout = Rollout(runner, one)
    rollout("reset", ROW)
    process = rollout.process()
    rollout.begin("call_tool", "do", {"what": "hang"})
    runner.close()
    gone = Path(f"/proc/{process}")
    for _ in range(200):
        if not gone.exists():
            break
        time.sleep(0.05)
    assert not gone.exists()


def test_a_student_reads_that_its_environment_is_gone(runner, shared) -> None:
    tokenizer = chat_tokenizer()
    template = TurnTemplate(tokenizer, [unruly.DO], {}, [tokenizer.eos_token_id])
    limits = EpisodeLimits(context=9000, response=9000, turns=8, calls=8, result_tokens=500)
    episode = Episode("the world", shared.make, template, HermesParser(), runner, limits)

    async def run() -> None:
        await episode.begin(ROW, [])
        for turn in (
            call("do", what="") + call("do", what="raise") + call("do", what="exit"),
            call("do", what=""),
            "So?",
        ):
            await episode.take(tokenizer(turn + END)["input_ids"], "stop")
        await episode.finish()

    runner.start("one", run)
    assert runner.ended.get(timeout=120)[1] is None
    one, raised, crashed, after = (m["content"] for m in episode.messages if m["role"] == "tool")
    assert one == "call 1"
    assert raised == "error: KeyError: 'no'"
    assert crashed.startswith("error: the environment's process ended (")
    assert after == "error: the environment is gone: its process has ended"
    assert episode.ending == "tool_limit"
    assert episode.figures == {}
    assert (episode.account.calls, episode.account.failed) == (4, 1)


def test_processes_end_with_the_rollout_actor_that_started_them() -> None:
    @ray.remote(num_cpus=0)
    class RolloutActor:
        def start(self) -> tuple[int, int]:
            child = EnvironmentActor.remote("unruly:Unruly", {}, "environment.path", ())
            pid = child.__ray_call__.remote(lambda _: os.getpid())
            self.child = child
            return os.getpid(), ray.get(pid)

    actor = RolloutActor.remote()
    own, childs = ray.get(actor.start.remote())
    os.kill(own, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(childs) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(childs)
