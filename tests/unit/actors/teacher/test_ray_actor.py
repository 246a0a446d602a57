"""Which methods of a named actor are called, and with what; no cluster is needed for that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from actors.teacher.kinds.ray_actor import ActorTeacher
from actors.teacher.protocol import TeacherError, Wanted
from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import TeacherInfo

WANTED = Wanted(SignalChoice.sampled, topk=7, own_topk=3)


def calls_of(methods: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What an ActorTeacher calls when it is made, scores nothing and gives its output head."""
    calls: list[Any] = []
    replies = {"info": TeacherInfo("theirs", 20, 64, ("topk",)), "score": [], "output_head": "head"}

    def method(name: str) -> SimpleNamespace:
        def remote(*given: Any) -> Any:
            calls.append((name, *given))
            return replies[name.removesuffix("_as")]

        return SimpleNamespace(remote=remote)

    actor = SimpleNamespace(**{name: method(name) for name in methods})
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    monkeypatch.setattr(ray, "get", lambda reply: reply)
    settings = TeacherSettings(actor_name="served", signal=SignalChoice.sampled, topk=7)
    teacher = ActorTeacher(settings, vocab_size=20, own_topk=3)
    assert teacher.score([]) == []
    assert teacher.output_head() == "head"
    return calls


def test_an_actor_that_several_runs_share_is_told_what_this_run_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    methods = ["info", "info_as", "score", "score_as", "output_head"]
    assert calls_of(methods, monkeypatch) == [
        ("info_as", WANTED),
        ("score_as", [], WANTED),
        ("output_head",),
    ]


def test_an_actor_with_the_methods_of_a_teacher_alone_is_asked_plainly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert calls_of(["info", "score", "output_head"], monkeypatch) == [
        ("info",),
        ("score", []),
        ("output_head",),
    ]


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (KeyError("x"), "KeyError: 'x' (/home/ray/soft.py, line 9, in info)"),
        (TeacherError("the server is gone"), "the server is gone"),
    ],
)
def test_what_the_actor_raises_is_named_by_its_own_place(
    cause: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Path(ray.__file__).parent / "actor.py"
    text = (
        "ray::Soft.info() (pid=1)\n"
        '  File "python/ray/_raylet.pyx", line 1, in execute\n'
        '  File "/home/ray/soft.py", line 9, in info\n    return self.known["x"]\n'
        f'  File "{library}", line 3, in get\n'
        "KeyError"
    )

    def refused(reply: Any) -> Any:
        raise RayTaskError("info", text, cause).as_instanceof_cause()

    method = SimpleNamespace(remote=lambda *given: None)
    actor = SimpleNamespace(info=method, score=method)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    monkeypatch.setattr(ray, "get", refused)
    with pytest.raises(TeacherError) as raised:
        ActorTeacher(TeacherSettings(actor_name="served"), vocab_size=20)
    assert str(raised.value) == f"teacher.actor_name = 'served': {words}"
