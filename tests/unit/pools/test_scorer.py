"""Rollouts and scores that arrive in any order, brought together in the order of the requests."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from fake_replicas import pool_of, recovery, writers_of
from stand_ins import Engine, Response, Script, StandInWatch, Teacher

from opd_ray.errors import RunError
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.scorer import RolloutScorer, ScoredRollout
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.turns import AllAtOnce
from opd_ray.types import Rollout, RolloutRequest, RolloutScores, Sampling, TopK

NAMES = [f"{key}{sample}" for key in "abcd" for sample in range(3)]
# Every response has a length and a divergence of its own.
RESPONSES = {
    name: Response(mask=[1] * size, logprob=[-0.1 * size] * size, reverse_kl=[0.1 * size] * size)
    for size, name in enumerate(NAMES, start=1)
}


@pytest.mark.parametrize("order", range(6))
def test_judged_rollouts_come_in_the_order_of_the_requests(order: int) -> None:
    draw, script = Random(order), Script(RESPONSES)
    watch: Any = StandInWatch(draw)
    engines = [(f"rollout-{number}", Engine(script, draw)) for number in range(3)]
    teachers = [Teacher(name, script) for name in ("teacher-0", "teacher-1")]
    pool, _, _ = pool_of(teachers, batch_tokens=12, watch=watch)
    rollouts = writers_of(watch, engines, 2)
    scorer = RolloutScorer(watch, rollouts, TeacherRouter({"teacher": pool}, {}), AllAtOnce(watch))
    prompts = {key: np.array([number, 7], np.int32) for number, key in enumerate("abcd")}
    requests = [
        RolloutRequest(f"r{number}", name[0], int(name[1]), prompts[name[0]][:1], number)
        for number, name in enumerate(NAMES)
    ]
    scored = scorer.start(requests, Sampling(), prompts).result().rollouts
    assert [one.rollout.rollout_id for one in scored] == [f"r{n}" for n in range(12)]
    assert [one.scores.rollout_id for one in scored] == [f"r{n}" for n in range(12)]
    for size, one in enumerate(scored, start=1):
        assert len(one.rollout.response_ids) == size
        np.testing.assert_allclose(one.rollout.logprob, [-0.1 * size] * size, rtol=1e-6)
        np.testing.assert_allclose(one.scores.columns["reverse_kl"], [0.1 * size] * size, rtol=1e-6)
    read = {key: ids for teacher in teachers for key, ids in teacher.prompts.items()}
    for request in requests:
        assert read[request.rollout_id].tolist() == prompts[request.prompt_id].tolist()


@pytest.mark.parametrize("order", range(6))
def test_a_teacher_that_waits_for_the_writers_gets_all_at_once(order: int) -> None:
    draw, script = Random(order), Script(RESPONSES)
    watch: Any = StandInWatch(draw)
    teacher = Teacher("teacher-0", script)
    pool, _, _ = pool_of([teacher], batch_tokens=1000, watch=watch, after_writing=True)
    rollouts = writers_of(watch, [("rollout-0", Engine(script, draw))], 2)
    scorer = RolloutScorer(watch, rollouts, TeacherRouter({"teacher": pool}, {}), AllAtOnce(watch))
    prompts = {key: np.array([number, 7], np.int32) for number, key in enumerate("abcd")}
    for step in range(2):
        requests = [
            RolloutRequest(f"{step}{n}", n[0], int(n[1]), prompts[n[0]][:1], 0) for n in NAMES
        ]
        scorer.start(requests, Sampling(), prompts).result()
        pool.drop([request.rollout_id for request in requests])
    assert [len(batch) for batch in teacher.batches] == [12, 12]


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("empty", [{"a1", "c0", "d2"}, set(NAMES)])
def test_a_rollout_in_which_the_student_wrote_nothing_is_not_sent(
    order: int, empty: set[str]
) -> None:
    responses = {
        name: Response(mask=[0, 0], logprob=[0, 0], reverse_kl=[0, 0]) if name in empty else one
        for name, one in RESPONSES.items()
    }
    draw, script = Random(order), Script(responses)
    watch: Any = StandInWatch(draw)
    teacher = Teacher("teacher-0", script)
    rollouts = writers_of(watch, [("rollout-0", Engine(script, draw))], 2)
    pool, _, _ = pool_of([teacher], batch_tokens=12, watch=watch)
    scorer = RolloutScorer(watch, rollouts, TeacherRouter({"teacher": pool}, {}), AllAtOnce(watch))
    prompts = {key: np.array([number, 7], np.int32) for number, key in enumerate("abcd")}
    requests = [
        RolloutRequest(name, name[0], int(name[1]), prompts[name[0]][:1], 0) for name in NAMES
    ]
    scored = scorer.start(requests, Sampling(), prompts).result().rollouts
    assert [one.rollout.rollout_id for one in scored] == NAMES
    assert {one.scores.rollout_id for one in scored if not one.scores.columns} == empty
    assert teacher.prompts.keys() == set(NAMES) - empty
    assert all(not len(one.whole().rows) for one in scored if one.rollout.rollout_id in empty)


def test_kept_rows_take_their_own_weights_and_log_probabilities_along() -> None:
    rollout = Rollout(
        rollout_id="r",
        prompt_id="p",
        sample=0,
        prompt_ids=np.array([1, 2], np.int32),
        response_ids=np.array([3, 4, 5, 6], np.int32),
        response_mask=np.array([1, 0, 1, 1], np.uint8),
        entropy=np.zeros(4, np.float32),
        logprob=np.array([-0.25, -0.5, -0.75, -1.0], np.float32),
        finish_reason="stop",
        weights_version=0,
    )
    zero = np.zeros(4, np.float32)
    scored = ScoredRollout(rollout, RolloutScores("r", {"reverse_kl": zero}))
    kept = scored.kept(np.array([0.0, 0.0, 0.5, 0.125], np.float32))
    assert (kept.rows.tolist(), kept.weights.tolist()) == ([2, 3], [0.5, 0.125])
    assert kept.rollout_logprob.tolist() == [-0.75, -1.0]
    assert kept.prompt_ids.tolist() == [1, 2]
    assert kept.response_ids.tolist() == [3, 4, 5, 6]
    whole = scored.whole()
    assert (whole.rows.tolist(), whole.weights.tolist()) == ([0, 2, 3], [1.0, 1.0, 1.0])
    assert whole.rollout_logprob.tolist() == [-0.25, -0.75, -1.0]


def scored(rollout: Rollout, request: RolloutRequest, **options: Any) -> tuple[Any, Any]:
    """What becomes of a rollout that an engine wrote, and the teacher that was asked."""
    draw = Random(0)
    script = Script({"a0": Response(mask=[1, 1], logprob=[-0.1] * 2, reverse_kl=[0.1] * 2)})
    watch: Any = StandInWatch(draw)
    teacher = Teacher("teacher-0", script)
    pool, _, _ = pool_of([teacher], batch_tokens=12, watch=watch)

    class Pool(RolloutPool):
        def start(self, requests: Any, sampling: Any, deliver: Any, **others: Any) -> None:
            super().start(requests, sampling, lambda _: deliver([rollout]), **others)

    engine = Engine(script, draw)
    watch.current["rollout-0"] = engine
    care = recovery("rollout actor", "rollout", watch.start)
    rollouts = Pool(watch, [("rollout-0", engine)], 2, care)
    scorer = RolloutScorer(watch, rollouts, TeacherRouter({"teacher": pool}, {}), AllAtOnce(watch))
    (one,) = scorer.start([request], Sampling(), **options).result().rollouts
    return one, teacher


OTHER = Rollout(
    *("r0", "a", 0, np.array([8, 9], np.int32), np.array([3, 4], np.int32)),
    *(np.ones(2, np.uint8), np.ones(2, np.float32), -np.ones(2, np.float32), "turns", 0),
    topk=TopK(np.array([[3], [4]], np.int32), -np.ones((2, 1), np.float32)),
)
ASKED = RolloutRequest("r0", "a", 0, np.array([1], np.int32), 0)


def test_teachers_read_what_the_student_read() -> None:
    _, teacher = scored(OTHER, ASKED, teacher_prompts={})
    assert teacher.prompts["r0"].tolist() == [8, 9]


def test_a_teachers_own_prompt_does_not_go_with_one_that_an_environment_changed() -> None:
    own = {"a": np.array([5], np.int32)}
    with pytest.raises(RunError, match="'a' has a teacher's prompt of its own"):
        scored(OTHER, ASKED, teacher_prompts=own)
    _, teacher = scored(replace(OTHER, prompt_ids=ASKED.prompt_ids), ASKED, teacher_prompts=own)
    assert teacher.prompts["r0"].tolist() == [5]


def test_a_rollout_that_is_left_out_is_never_scored() -> None:
    one, teacher = scored(OTHER, ASKED, teacher_prompts={}, drops=lambda request, rollout: True)
    assert teacher.prompts == {}
    assert one.scores.columns == {}
    assert not one.rollout.response_mask.any()
    assert not one.rollout.entropy.any()
    assert one.rollout.finish_reason == "turns"
    assert len(one.whole().rows) == 0
