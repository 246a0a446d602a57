"""OpenEnv's sessions as environments: with stand-ins, and with the package where it is there.

The package asks for others than the pinned ones: ``pip install openenv`` in an environment of its
own, with pytest, pytest-timeout, omegaconf and pyyaml.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from opd_ray.environments.adapters.openenv import OpenEnvSession
from opd_ray.environments.environment import Environment, ToolResult
from opd_ray.errors import ConfigError

_INSTALL = "compares with the package itself: pip install openenv==0.10.0"
ROW = {"prompt": [{"role": "user", "content": "Own."}], "riddle": "two", "rollout_seed": 7}


@dataclass
class Tool:
    name: str
    description: str
    input_schema: dict[str, Any]


@dataclass
class Result:
    """As ``openenv.core.harness.ToolResult``."""

    data: Any = None
    done: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Verdict:
    """As ``openenv.core.harness.VerifyResult``."""

    env_reward: float | None = None
    done: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)


def spelled(kinds: Any) -> tuple[type, type]:
    """A session and its factory, of these kinds of tool, result and verdict."""
    tool, result, verdict = kinds.Tool, kinds.ToolResult, kinds.VerifyResult

    class Session(kinds.ResourceSession):
        open = 0

        def __init__(self, task: Any, seed: int | None) -> None:
            Session.open += 1
            self.task, self.seed, self.calls = task, seed, 0

        def initial_messages(self) -> list[dict[str, Any]]:
            if self.task == "silent":
                return []
            return [{"role": "user", "content": f"Spell {self.task} ({self.seed})."}]

        def list_tools(self) -> list[Any]:
            number = {"type": "object", "properties": {"at": {"type": "integer"}}}
            return [tool(name="letter", description="A letter.", input_schema=number)]

        def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
            self.calls += 1
            at = arguments["at"]
            if at < 0:
                return result(error="there is no such letter", done=False)
            if at >= len(self.task):
                return result(data=None, done=True)
            return result(data={"letter": self.task[at], "at": at})

        def verify(self, transcript: list[Any], final_state: Any = None) -> Any:
            metrics = {"calls": self.calls, "said": len(transcript), "note": "none", "ok": True}
            return verdict(env_reward=0.5 if self.calls else None, metrics=metrics)

        def close(self) -> None:
            Session.open -= 1

    class Factory(kinds.ResourceSessionFactory):
        def create(self, task: Any, seed: int | None = None, episode_id: str | None = None) -> Any:
            return Session(task, seed)

    return Session, Factory


class StandIns:
    Tool, ToolResult, VerifyResult = Tool, Result, Verdict
    ResourceSession = ResourceSessionFactory = object


def of_package() -> Any:
    """The real classes."""
    harness = pytest.importorskip("openenv.core.harness", reason=_INSTALL)
    types = pytest.importorskip("openenv.core.env_server.mcp_types", reason=_INSTALL)
    return type("Real", (), {"Tool": types.Tool, **vars(harness)})


@pytest.fixture(params=["stand-ins", "package"])
def session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """The class of the sessions; their factory is at ``spelling:Factory``."""
    made, factory = spelled(StandIns if request.param == "stand-ins" else of_package())
    module = type(sys)("spelling")
    module.Factory = factory
    monkeypatch.setitem(sys.modules, "spelling", module)
    return made


def test_a_rollout(session: Any) -> None:
    made = OpenEnvSession("spelling:Factory", task="riddle", example="x")
    assert isinstance(made, Environment)
    assert made.tools == [
        {
            "type": "function",
            "function": {
                "name": "letter",
                "description": "A letter.",
                "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}},
            },
        }
    ]
    assert session.open == 0  # the one that was asked for its tools is closed again
    assert made.reset(ROW) == [{"role": "user", "content": "Spell two (7)."}]
    assert session.open == 1
    assert made.verify([]) == {"calls": 0.0, "said": 0.0, "ok": 1.0}
    assert made.call_tool("letter", {"at": 1}) == ToolResult('{"at": 1, "letter": "w"}')
    assert made.call_tool("letter", {"at": -1}) == ToolResult("error: there is no such letter")
    assert made.call_tool("letter", {"at": 9}) == ToolResult("", done=True)
    with pytest.raises(KeyError):
        made.call_tool("letter", {})
    expected = {"calls": 4.0, "said": 2.0, "ok": 1.0, "reward": 0.5}
    assert made.verify([{"role": "user"}, {"role": "assistant"}]) == expected
    made.close()
    assert session.open == 0


def test_the_whole_row_is_the_task_where_no_column_is_named(session: Any) -> None:
    made = OpenEnvSession("spelling:Factory")
    made.reset(ROW)
    assert made._session.task == ROW
    made.close()


def test_a_session_without_messages_takes_the_rows(session: Any) -> None:
    made = OpenEnvSession("spelling:Factory", task="riddle")
    assert made.reset({**ROW, "riddle": "silent"}) == ROW["prompt"]
    made.close()


def test_a_factory_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="factory = 'no_such_module:Factory' cannot be imported"):
        OpenEnvSession("no_such_module:Factory")


def test_results_read_as_in_openenvs_own_loop(session: Any) -> None:
    harness = pytest.importorskip("openenv.core.harness", reason=_INSTALL)
    llm = pytest.importorskip("openenv.core.llm_client", reason=_INSTALL)
    asked = [{"at": 0}, {"at": 2}, {"at": 5}]

    def step(messages: list[Any], tools: list[Any], sampling: dict[str, Any]) -> Any:
        turn = sum(message["role"] == "assistant" for message in messages)
        call = llm.ToolCall(id=str(turn), name="letter", args=asked[turn])
        return harness.ModelStepResult(llm.LLMResponse(content="", tool_calls=[call]))

    module = sys.modules["spelling"]
    theirs = harness.MCPHarnessAdapter().run_white_box(step, module.Factory().create("two", 7))
    read = [message["content"] for message in theirs.messages if message["role"] == "tool"]
    ours = OpenEnvSession("spelling:Factory", task="riddle")
    assert ours.reset(ROW) == theirs.messages[:1]
    assert [ours.call_tool("letter", arguments).text for arguments in asked] == read
    assert read == ['{"at": 0, "letter": "t"}', '{"at": 2, "letter": "o"}', ""]
