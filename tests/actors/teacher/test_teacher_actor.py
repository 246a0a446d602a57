"""Teacher actors on a real Ray: scores through the pool, kept rows straight to another process."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError
from tiny_models import make_tiny_qwen3

from actors.teacher.actor import TeacherActor
from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.service import TeacherServer
from opd_ray.config.choices import Support
from opd_ray.config.teacher import TeacherSettings
from opd_ray.pools.members import RestartPolicy
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import NO_TOKEN, Rollout, RolloutScores, ScoreRequest, TopK

VOCAB, K, BATCH_TOKENS = 96, 6, 128

pytestmark = pytest.mark.usefixtures("joined_ray")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_qwen3(tmp_path_factory.mktemp("teacher"), vocab=VOCAB)


@ray.remote(num_cpus=0)
def read_as_trainer(*signals):
    """What a trainer sees: the dictionaries behind the references, one a replica."""
    return {key: value for part in signals for key, value in part.items()}


def rollouts(count: int, student: HfTeacher) -> list[Rollout]:
    """Random texts with the true top-K of ``student``, which thus is the model that wrote them."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        prompt, response = (
            rng.integers(3, VOCAB, rng.integers(1, 30)).astype(np.int32) for _ in range(2)
        )
        blank = TopK(np.zeros((len(response), 1), np.int32), np.zeros((len(response), 1)))
        [known] = student.score([ScoreRequest(f"r{number}", prompt, response, blank)])
        made.append(
            Rollout(
                rollout_id=f"r{number}",
                prompt_id=str(number),
                sample=0,
                prompt_ids=prompt,
                response_ids=response,
                response_mask=np.ones(len(response), np.uint8),
                entropy=known.entropy,
                logprob=known.logprob,
                finish_reason="stop",
                weights_version=0,
                topk=TopK(known.signal.ids, known.signal.logprobs),
            )
        )
    return made


def settings(folder: Path, **changes) -> TeacherSettings:
    base = {"path": str(folder), "threads": 1, "topk": 8}
    return TeacherSettings(**{**base, "batch_tokens": BATCH_TOKENS, **changes})


@pytest.fixture(scope="module")
def replicas(folder):
    """Two actors that are shared by the tests: each start costs seconds of imports."""
    actor = TeacherActor.options(num_cpus=0.5)
    given = {"own_topk": 4, "support": Support.union}
    handles = [actor.remote(settings(folder), VOCAB, **given) for _ in range(2)]
    infos = ray.get([handle.ready.remote() for handle in handles])
    assert infos[0] == infos[1]
    assert infos[0].name == folder.name
    return [(f"teacher-{number}", handle) for number, handle in enumerate(handles)]


class Bench:
    """A pool of the replicas, and the watch it has."""

    def __init__(self, replicas) -> None:
        self._watch = ActorWatch(60, "the test's limit")
        for name, handle in replicas:
            self._watch.add(name, handle)
        policy = RestartPolicy(
            "replica", "teacher", lambda name: None, 0, "no more", "", 60.0, None
        )
        self.pool = TeacherPool(replicas, BATCH_TOKENS, self._watch, policy)

    def drive(self, count: int) -> dict[str, RolloutScores]:
        """Score what was submitted, so many rollouts."""
        found: dict[str, RolloutScores] = {}
        self.pool.deliver = lambda scores: found.update({scores.rollout_id: scores})
        self._watch.wait_until(lambda: len(found) == count, "scores")
        return found


def held_bytes(handle) -> ray.ObjectRef:
    """Of signals that a replica holds, asked behind all that it was told before."""
    call = handle.__ray_call__.options(concurrency_group="signals")
    return call.remote(lambda actor: actor._server.signals.nbytes)


def test_two_replicas_end_to_end(folder, replicas, tmp_path):
    student = HfTeacher(TeacherSettings(path=str(make_tiny_qwen3(tmp_path, seed=1)), topk=K))
    made = rollouts(24, student)
    bench = Bench(replicas)
    pool = bench.pool
    for rollout in made:
        pool.submit(
            Rollout(**{**rollout.__dict__, "topk": ray.put(rollout.topk)})
        )  # as a rollout actor hands it over
    scores = bench.drive(24)

    chosen = settings(folder)
    teacher = HfTeacher(chosen, vocab_size=VOCAB, own_topk=4)
    local = TeacherServer(teacher, chosen, Support.union)
    requests = [ScoreRequest(r.rollout_id, r.prompt_ids, r.response_ids, r.topk) for r in made]
    expected = {s.rollout_id: s for s in local.score(requests)}
    assert scores.keys() == expected.keys()
    for key, one in expected.items():
        for name in ("reverse_kl", "forward_kl", "jsd", "teacher_logprob", "teacher_entropy"):
            np.testing.assert_allclose(
                scores[key].columns[name], one.columns[name], atol=1e-4, err_msg=name
            )
        assert "union_forward_kl" in scores[key].columns
        assert (one.columns["reverse_kl"] > 0).any()

    keep = {r.rollout_id: np.arange(0, len(r.response_ids), 2, dtype=np.int32) for r in made[:20]}
    [refs] = pool.take([keep])
    kept = ray.get(read_as_trainer.remote(*refs))
    whole = local.signals.take({r.rollout_id: np.arange(len(r.response_ids)) for r in made})
    for key, rows in keep.items():
        # The teacher's tokens, then the student's that are not among them.
        student = next(r.topk.ids[rows] for r in made if r.rollout_id == key)
        named = kept[key].ids[:, chosen.topk :]
        assert named.shape == student.shape
        assert ((named == student) | (named == NO_TOKEN)).all()
        np.testing.assert_array_equal(kept[key].ids, whole[key].ids[rows])
        np.testing.assert_allclose(kept[key].logprobs, whole[key].logprobs[rows], atol=1e-4)

    pool.drop([r.rollout_id for r in made[20:]])
    assert ray.get([held_bytes(handle) for _, handle in replicas]) == [0, 0]
    stats = pool.stats()
    assert stats.scored_tokens == sum(len(r.prompt_ids) + len(r.response_ids) for r in made)
    assert all(tokens > 0 for tokens in stats.tokens_by_replica.values())
    assert stats.signal_rows == sum(map(len, keep.values()))
    assert stats.signal_bytes == sum(s.nbytes for s in kept.values())
    assert all(ray.get(handle.peak_memory.remote()) > 1 << 20 for _, handle in replicas)


def test_student_as_teacher_scores_zero(folder, replicas):
    made = rollouts(5, HfTeacher(settings(folder, topk=K)))
    bench = Bench(replicas)
    pool = bench.pool
    for rollout in made:
        pool.submit(rollout)
    found = bench.drive(5)
    for rollout in made:
        scores = found[rollout.rollout_id]
        for name in ("reverse_kl", "forward_kl", "jsd", "union_forward_kl"):
            np.testing.assert_allclose(scores.columns[name], 0, atol=1e-5)
        np.testing.assert_allclose(scores.columns["teacher_entropy"], rollout.entropy, atol=1e-4)
        np.testing.assert_allclose(scores.columns["teacher_logprob"], rollout.logprob, atol=1e-4)
    pool.drop(found)


def test_errors_cross_processes_with_their_cause(replicas):
    _, handle = replicas[0]
    topk = TopK(np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32))
    long = ScoreRequest("r1", np.ones(1023, np.int32), np.ones(2, np.int32), topk)
    with pytest.raises(
        RayTaskError, match="rollout 'r1': 1023 prompt and 2 response tokens exceed"
    ):
        ray.get(handle.score.remote([long]))
    with pytest.raises(RayTaskError, match="no signal is held for rollout 'r1'"):
        ray.get(handle.take.remote({"r1": np.array([0])}))


def test_signals_are_handed_out_while_a_batch_is_being_scored(folder, replicas, tmp_path):
    made = rollouts(4, HfTeacher(settings(folder, topk=K)))
    _, handle = replicas[0]
    requests = [ScoreRequest(r.rollout_id, r.prompt_ids, r.response_ids, r.topk) for r in made]
    ray.get(handle.score.remote(requests[:1]))
    gate = tmp_path / "may go on"

    def hold(actor):
        score = actor._server.score

        def held(read):
            while not gate.exists():
                time.sleep(0.01)
            return score(read)

        actor._server.score = held

    ray.get(handle.__ray_call__.remote(hold))
    scoring = handle.score.remote(requests[1:])
    ray.get(handle.take.remote({"r0": np.array([0])}), timeout=60)
    ready, _ = ray.wait([scoring], timeout=0)
    assert not ready
    gate.touch()
    assert len(ray.get(scoring)) == 3
    ray.get(handle.forget.remote([r.rollout_id for r in made[1:]]))
