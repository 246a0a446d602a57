"""What the process of an environment answers, without the process."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
import unruly

from actors.environment.host import Answer, EnvironmentHost
from opd_ray.environments.environment import ToolResult

ROW = {"prompt": [{"role": "user", "content": "Hello"}]}
PLACE = "environment.path = 'unruly:Talking'"
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="none")


def host(name: str = "Talking", **arguments: Any) -> EnvironmentHost:
    return EnvironmentHost(f"unruly:{name}", arguments, "environment.path", [unruly.DO])


def begun() -> EnvironmentHost:
    made = host()
    assert made.ready() == Answer()
    made.answer("reset", ROW)
    return made


def test_every_method_answers_plain_data() -> None:
    made = host()
    messages = [*ROW["prompt"], {"role": "user", "content": "Go on."}]
    assert made.answer("reset", ROW) == Answer(messages)
    assert made.answer("call_tool", "do", {"what": "nothing"}) == Answer(ToolResult("call 1"))
    assert made.answer("call_tool", "do", {"what": "done"}) == Answer(
        ToolResult("all of it", done=True)
    )
    assert made.answer("respond", "so") == Answer([{"role": "user", "content": "You said so"}])
    assert made.answer("respond", "bye") == Answer(None)
    assert made.answer("verify", messages) == Answer({"calls": 2.0})
    assert made.answer("close") == Answer(None)


def test_every_rollout_has_an_environment_and_a_context_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def set_and_tell(self: Any, text: str) -> list[dict[str, str]]:
        before = VARIABLE.get()
        VARIABLE.set(text)
        return [{"role": "user", "content": before}]

    monkeypatch.setattr(unruly.Talking, "respond", set_and_tell)
    made = begun()
    made.answer("call_tool", "do", {"what": ""})
    made.answer("respond", "a")
    assert made.answer("respond", "b").value == [{"role": "user", "content": "a"}]
    made.answer("close")
    made.answer("reset", ROW)
    assert made.answer("respond", "c").value == [{"role": "user", "content": "none"}]
    assert made.answer("verify", ROW["prompt"]) == Answer({"calls": 0.0})


def test_what_a_tool_raises_is_told_in_words() -> None:
    made = begun()
    assert made.answer("call_tool", "do", {"what": "raise"}) == Answer(raised="KeyError: 'no'")
    assert made.answer("call_tool", "do", {"what": "leave"}) == Answer(
        raised="RuntimeError: SystemExit: 3"
    )
    assert made.answer("call_tool", "do", {}) == Answer(raised="KeyError: 'what'")
    assert made.answer("call_tool", "do", {"what": ""}) == Answer(ToolResult("call 4"))


@pytest.mark.parametrize("how", ["raise", "leave"])
def test_what_another_method_raises_is_told_with_its_place(how: str) -> None:
    raised = {"raise": "KeyError: 'no'", "leave": "RuntimeError: SystemExit: 3"}[how]
    answers = {
        "reset": host().answer("reset", {**ROW, "in_reset": how}),
        "verify": begun().answer("verify", [{"role": "user", "content": how}]),
        "respond": begun().answer("respond", how),
    }
    for method, answer in answers.items():
        assert answer.raised is not None
        assert answer.raised.startswith(f"{PLACE}: {method}: {raised} (")
        assert "unruly.py, line " in answer.raised


def test_what_cannot_be_made_or_told_is_named() -> None:
    assert host("Nobody").ready().raised == (
        "environment.path = 'unruly:Nobody' cannot be imported: unruly has no 'Nobody'; define it "
        "there, or correct the name"
    )
    failed = host(at_start="raise").answer("reset", ROW).raised
    assert failed is not None
    assert failed.startswith(f"{PLACE}: KeyError: 'no' (")
    hello: dict[str, Any] = {"role": "user", "content": "Hello."}
    strange = host().answer("reset", {"prompt": [{**hello, "more": {1, 2}}]}).raised
    assert (
        strange
        == f"{PLACE}: reset: TypeError: it is no JSON: Object of type set is not JSON serializable"
    )
