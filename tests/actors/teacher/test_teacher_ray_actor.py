"""A teacher in a named Ray actor: forwarded as it is, and named with its cause when it fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import ray

from actors.teacher.protocol import TeacherError
from actors.teacher.registry import make_teacher
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import SampledSignal, ScoreRequest, TeacherAnswer, TeacherInfo, TopK

# The actors below are defined here, where Ray's workers cannot import them from.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

V, NAMESPACE = 10, "opd-ray"

pytestmark = pytest.mark.usefixtures("joined_ray")


class Uniform:
    """Every token is as likely as any other; some rollouts bring it down."""

    def info(self) -> TeacherInfo:
        return TeacherInfo("uniform", V, 64, ("sampled",))

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        answers = []
        for request in requests:
            if request.rollout_id == "bad":
                raise ValueError("no such page")
            if request.rollout_id == "fatal":
                os._exit(1)
            shape = request.student_topk.ids.shape
            logprob, at_topk = (np.full(s, -np.log(V), np.float32) for s in (shape[:1], shape))
            answers.append(
                TeacherAnswer(request.rollout_id, logprob, at_topk, SampledSignal(logprob))
            )
        return answers


class Silent:
    def info(self) -> None: ...


def start(name: str, kind: type) -> object:
    return ray.remote(kind).options(name=name, namespace=NAMESPACE, num_cpus=0).remote()


def settings(name: str, **changes: str) -> TeacherSettings:
    return TeacherSettings(kind="actor", actor_name=name, **changes)


def request(rollout_id: str, m: int = 3) -> ScoreRequest:
    topk = TopK(np.tile(np.arange(2, dtype=np.int32), (m, 1)), np.zeros((m, 2), np.float32))
    return ScoreRequest(rollout_id, np.ones(2, np.int32), np.ones(m, np.int32), topk)


def test_answers_come_as_the_actor_gave_them() -> None:
    handle = start("uniform", Uniform)
    teacher = make_teacher(settings("uniform"), vocab_size=V)
    assert teacher.info() == ray.get(handle.info.remote())
    assert teacher.score([]) == []
    long, short = teacher.score([request("long", 100_000), request("short")])
    assert (long.rollout_id, short.rollout_id) == ("long", "short")
    np.testing.assert_allclose(long.at_student_topk, -np.log(V), rtol=1e-6)
    # Not views into Ray's object store, which would keep the whole batch there.
    assert long.signal.logprobs.flags.writeable
    teacher.close()
    assert ray.get(handle.info.remote()).name == "uniform"  # still there
    with pytest.raises(TeacherError, match="10 tokens, student and teacher share 9"):
        make_teacher(settings("uniform"), vocab_size=V - 1)


def test_what_goes_wrong_names_the_actor() -> None:
    kept = [start("failing", Uniform), start("silent", Silent)]
    for name, namespace, message in (
        ("nobody", NAMESPACE, "'nobody': no such actor runs in the Ray namespace 'opd-ray'"),
        ("failing", "elsewhere", "'failing': no such actor runs in the Ray namespace 'elsewhere'"),
        ("silent", NAMESPACE, "'silent': that actor has no method score"),
    ):
        with pytest.raises(TeacherError, match=message):
            make_teacher(settings(name, actor_namespace=namespace))
    teacher = make_teacher(settings("failing"))
    with pytest.raises(TeacherError, match=r"'failing': [\s\S]*no such page"):
        teacher.score([request("bad")])
    with pytest.raises(TeacherError, match="'failing': that actor has no output_head"):
        teacher.output_head()
    with pytest.raises(TeacherError, match="'failing': "):
        teacher.score([request("fatal")])
    del kept
