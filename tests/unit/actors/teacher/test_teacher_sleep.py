"""Teachers that give their memory back answer the same after, and are named if asked meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import call, create_autospec

import numpy as np
import pytest
import torch

from actors.teacher.cache.teacher import CachedTeacher
from actors.teacher.kinds.ensemble import Ensemble
from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.kinds.self_student import Follower
from actors.teacher.kinds.vllm import VllmTeacher
from actors.teacher.protocol import SleepingTeacher
from actors.teacher.service import TeacherServer
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import Asleep
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.types import ScoreRequest, TopK
from opd_ray.user_code import guarded

PATH = str(pair_folder() / "student")
HIDDEN = {"path": PATH, "batch_tokens": 512, "signal": SignalChoice.hidden}


def request(name: str = "r") -> ScoreRequest:
    ids = np.arange(3, 13, dtype=np.int32)
    student = TopK(np.tile(np.arange(4, dtype=np.int32), (6, 1)), np.full((6, 4), -2.0, np.float32))
    return ScoreRequest(name, ids[:4], ids[4:], student)


def held(teacher: HfTeacher) -> list[torch.Tensor]:
    return [one for one in teacher._held() if one.numel() > 20_000]


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("decay", [None, 0.5])
def test_a_teacher_that_has_slept_answers_as_before(dtype: Dtype, decay: float | None) -> None:
    settings = TeacherSettings(kind="self", follow_decay=decay, dtype=dtype, **HIDDEN)
    teacher = Follower(settings) if decay else HfTeacher(settings)
    server = TeacherServer(teacher, settings)
    assert isinstance(teacher, SleepingTeacher)
    if isinstance(teacher, Follower):
        teacher.follow((n, 2 * p) for n, p in teacher._model.named_parameters())
    (before,) = server.score([request("a")])
    server.sleep()
    server.sleep()
    if dtype is Dtype.float32:  # in bfloat16 it is mapped from its file, which is read again
        assert held(teacher)
        assert not any(bool(one.view(-1)[10_000:10_010].any()) for one in held(teacher))
    server.wake()
    server.wake()
    (after,) = server.score([request("b")])
    for name, column in before.columns.items():
        np.testing.assert_array_equal(after.columns[name], column, err_msg=name)
    (one,), (other,) = (server.signals.take({key: np.arange(6)}).values() for key in "ab")
    np.testing.assert_array_equal(one.hidden, other.hidden)


def test_asleep_it_is_named_and_signals_are_at_hand() -> None:
    settings = TeacherSettings(kind="self", **HIDDEN)
    server = TeacherServer(HfTeacher(settings), settings)
    server.score([request("a")])
    server.sleep()
    for what, asked in (
        ("scores", lambda: server.score([request("b")])),
        ("its output head", server.output_head),
    ):
        with pytest.raises(Asleep, match=f"^teacher 'student': asleep.* asked for {what}"):
            asked()
    assert list(server.signals.take({"a": np.arange(2)})) == ["a"]


def sleeper(log: list[str], name: str) -> Any:
    return SimpleNamespace(
        sleep=lambda: log.append(f"{name} sleeps"), wake=lambda: log.append(f"{name} wakes")
    )


def test_members_and_recorded_teachers_sleep_with_what_holds_them() -> None:
    log: list[str] = []
    ensemble = Ensemble.__new__(Ensemble)
    ensemble._teachers = [sleeper(log, "one"), SimpleNamespace(score=None), sleeper(log, "two")]
    cached = CachedTeacher.__new__(CachedTeacher)
    cached._live = sleeper(log, "live")
    for teacher in (ensemble, cached):
        teacher.sleep()
        teacher.wake()
    assert log == [
        *("one sleeps", "two sleeps", "one wakes", "two wakes"),
        *("live sleeps", "live wakes"),
    ]
    cached._live = None  # it is replayed, and nobody has been asked for yet
    cached.sleep()
    cached.wake()


def test_a_class_of_the_users_sleeps_if_it_can() -> None:
    log: list[str] = []
    assert isinstance(guarded(sleeper(log, "own"), "here"), SleepingTeacher)
    assert not isinstance(guarded(SimpleNamespace(score=print), "here"), SleepingTeacher)


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_vllm_teacher_keeps_its_weights(gpus: int) -> None:
    from vllm.v1.engine.llm_engine import LLMEngine

    teacher = VllmTeacher.__new__(VllmTeacher)
    teacher._settings = TeacherSettings(kind="vllm", path=PATH, gpus_per_replica=gpus)
    teacher._engine = create_autospec(LLMEngine, instance=True)
    teacher._sleeps = True
    teacher.sleep()
    teacher.wake()
    own = [one for one in teacher._engine.mock_calls if one[0] != "collective_rpc"]
    assert own == [
        call.sleep(level=1),
        call.wake_up(tags=["weights"]),
        call.wake_up(tags=["kv_cache"]),
    ]
    assert len(teacher._engine.mock_calls) == (3 if gpus else 6)
    assert teacher._engine_args().get("enable_sleep_mode", False) is bool(gpus)
