"""Teacher processes killed on a real Ray, wherever their rollouts are: the result is the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from tiny_models import make_tiny_qwen3

from actors.teacher.actor import TeacherActor
from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.service import TeacherServer
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ActorFailure
from opd_ray.pools.members import RestartPolicy
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.watch import ActorWatch, StallError
from opd_ray.types import Rollout, RolloutScores, ScoreRequest, Signal, TopK

VOCAB, K, BATCH_TOKENS, COUNT = 96, 6, 96, 24

pytestmark = pytest.mark.usefixtures("joined_ray")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TeacherSettings:
    folder = make_tiny_qwen3(tmp_path_factory.mktemp("teacher"), vocab=VOCAB)
    return TeacherSettings(path=str(folder), threads=1, topk=8, batch_tokens=BATCH_TOKENS)


@pytest.fixture(scope="module")
def made() -> list[Rollout]:
    """Random texts with a random top-K."""
    rng = np.random.default_rng(0)
    rollouts = []
    for number in range(COUNT):
        prompt, response = (
            rng.integers(3, VOCAB, rng.integers(1, 30)).astype(np.int32) for _ in range(2)
        )
        m = len(response)
        ids = np.stack([rng.permutation(VOCAB)[:K] for _ in range(m)]).astype(np.int32)
        topk = TopK(ids, np.full((m, K), np.log(0.1), np.float32))
        zero = np.zeros(m, np.float32)
        mask = np.ones(m, np.uint8)
        key = f"r{number}"
        rollouts.append(Rollout(key, key, 0, prompt, response, mask, zero, zero, "stop", 0, topk))
    return rollouts


@pytest.fixture(scope="module")
def undisturbed(settings, made) -> tuple[dict[str, RolloutScores], dict[str, Signal]]:
    """Scores and whole signals, computed in this process."""
    server = TeacherServer(HfTeacher(settings, vocab_size=VOCAB), settings)
    requests = [ScoreRequest(r.rollout_id, r.prompt_ids, r.response_ids, r.topk) for r in made]
    scores = {s.rollout_id: s for s in server.score(requests)}
    return scores, server.signals.take({r.rollout_id: np.arange(len(r.response_ids)) for r in made})


@ray.remote(num_cpus=0)
class Writer:
    """Owns the top-Ks as a rollout actor does, which holds them until its next batch."""

    def topks(self, topks: list[TopK]) -> Iterator[list[ray.ObjectRef]]:
        self._refs: list[ray.ObjectRef] = []
        for topk in topks:
            self._refs.append(ray.put(topk))
            yield [self._refs[-1]]


class Run:
    """A watch of replicas, their pool, and the rollouts with references to their top-K."""

    def __init__(self, settings: TeacherSettings, made: list[Rollout], replicas: int) -> None:
        self.watch = ActorWatch(60, "the test's limit")
        self.names = [f"teacher-{number}" for number in range(replicas)]
        handles = {name: self._start(settings) for name in self.names}
        for name, handle in handles.items():
            self.watch.add(name, handle)
        self.writer = Writer.remote()
        self.refs = {}
        stream = self.writer.topks.options(num_returns="streaming").remote([r.topk for r in made])
        for rollout, item in zip(made, stream, strict=True):
            [self.refs[rollout.rollout_id]] = ray.get(item)
        self.made = made
        self.watch.get_all((handle.ready.remote(), name) for name, handle in handles.items())
        policy = RestartPolicy(
            what="teacher replica",
            key="teacher",
            start=lambda name: self._start(settings),
            max_restarts=settings.max_restarts,
            no_more="none may be started again",
            remedy="start anew",
            start_timeout_s=60.0,
            answer_timeout_s=settings.answer_timeout_s,
        )
        self.pool = TeacherPool(list(handles.items()), BATCH_TOKENS, self.watch, policy)
        self.scores: dict[str, RolloutScores] = {}

    @staticmethod
    def _start(settings: TeacherSettings):
        return TeacherActor.options(num_cpus=0.5).remote(settings, VOCAB)

    def ask(self, question: Callable[[Any], Any]) -> list[Any]:
        """What each living replica answers, beside a batch that is being scored, not after it."""
        calls = [
            handle.__ray_call__.options(concurrency_group="signals").remote(question)
            for _, handle in self.pool.living()
        ]
        return ray.get(calls)

    def kill(self, number: int) -> None:
        """As the operating system does it when memory is short."""
        os.kill(self.ask(lambda actor: os.getpid())[number], signal.SIGKILL)

    def submit(self) -> None:
        for rollout in self.made:
            self.pool.submit(replace(rollout, topk=self.refs[rollout.rollout_id]))
            self.pool.pump()

    def drive(self, until: int) -> None:
        def deliver(found: RolloutScores) -> None:
            assert found.rollout_id not in self.scores
            self.scores[found.rollout_id] = found

        self.pool.deliver = deliver
        self.watch.wait_until(lambda: len(self.scores) >= until, "scores")

    def take(self) -> dict[str, Signal]:
        keep = {r.rollout_id: np.arange(len(r.response_ids), dtype=np.int32) for r in self.made}
        [refs] = self.pool.take([keep])
        parts = ray.get(refs)
        taken = {key: signal for part in parts for key, signal in part.items()}
        assert sum(map(len, parts)) == len(taken) == COUNT
        return taken


def assert_same(run: Run, taken: dict[str, Signal], undisturbed) -> None:
    scores, signals = undisturbed
    assert run.scores.keys() == scores.keys()
    for key, one in scores.items():
        for name in ("reverse_kl", "forward_kl", "jsd", "teacher_logprob", "teacher_mass"):
            np.testing.assert_allclose(
                run.scores[key].columns[name], one.columns[name], atol=1e-5, err_msg=name
            )
        np.testing.assert_array_equal(taken[key].ids, signals[key].ids)
        np.testing.assert_allclose(taken[key].logprobs, signals[key].logprobs, atol=1e-5)


def test_one_of_two_killed_in_mid_batch_and_the_other_before_its_rows_leave(
    settings, made, undisturbed
) -> None:
    run = Run(settings, made, replicas=2)
    try:
        run.submit()
        run.drive(until=4)
        run.kill(0)  # batches out, signals held
        run.drive(until=COUNT)
        assert run.pool.stats().retried_rollouts > 0
        run.refs.clear()  # the pool's own references and the writer's are left
        run.kill(0)
        taken = run.take()
        assert_same(run, taken, undisturbed)
        stats = run.pool.stats()
        assert stats.retried_rollouts >= COUNT / 2
        assert set(run.ask(lambda actor: actor._server.signals.nbytes)) == {0}
        assert stats.signal_bytes == sum(signal.nbytes for signal in taken.values())

        # Replicas that hang are not dead: the run waits, then says for what and how long.
        run.watch.wait_until(lambda: len(run.pool.living()) == 2, "the new replica")
        hung = run.ask(lambda actor: os.getpid())
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        run.watch.set_stall_timeout(1, "cluster.stall_timeout_s")
        run.scores.clear()
        try:
            for rollout in made:
                run.pool.submit(rollout)
            with pytest.raises(StallError, match="1 s while waiting for scores .*stall_timeout_s"):
                run.drive(until=1)
        finally:
            for pid in hung:
                os.kill(pid, signal.SIGCONT)
        run.watch.set_stall_timeout(60, "the test's limit")
        run.drive(until=COUNT)
        run.pool.drop(run.scores)

        # One that raises is no death: asking another would give the same.
        long = replace(
            made[0],
            response_ids=np.full(2000, 5, np.int32),
            response_mask=np.ones(2000, np.uint8),
        )
        run.pool.submit(long)
        with pytest.raises(ActorFailure, match="failed: [\\s\\S]*exceed"):
            run.drive(until=COUNT + 1)
        assert run.pool.stats().restarts == stats.restarts
    finally:
        run.watch.shutdown()


def test_a_lone_replica_killed_is_started_again_and_then_no_more(
    settings, made, undisturbed
) -> None:
    run = Run(settings, made, replicas=1)
    try:
        run.submit()
        run.drive(until=4)
        run.kill(0)
        run.drive(until=COUNT)
        [refs] = run.pool.take([{made[0].rollout_id: np.arange(len(made[0].response_ids))}])
        assert run.pool.stats().restarts == 1
        run.kill(0)
        [part] = ray.get(refs)  # what left before the death outlives it
        expected = undisturbed[1][made[0].rollout_id]
        np.testing.assert_array_equal(part[made[0].rollout_id].ids, expected.ids)
        with pytest.raises(ActorFailure, match="teacher-0 failed: [\\s\\S]*no teacher replica"):
            run.pool.take([{made[1].rollout_id: np.array([0], np.int32)}])
    finally:
        run.watch.shutdown()


def test_a_replica_that_hangs_is_ended_and_its_rollouts_are_scored(
    settings, made, undisturbed
) -> None:
    limited = replace(settings, answer_timeout_s=4.0)
    run = Run(limited, made, replicas=2)
    try:
        hung = psutil.Process(run.ask(lambda actor: os.getpid())[0])
        hung.suspend()
        run.submit()
        run.drive(until=COUNT)
        run.watch.wait_until(lambda: len(run.pool.living()) == 2, "the new replica")
        assert run.pool.stats().restarts == 1
        assert_same(run, run.take(), undisturbed)
        hung.wait(30)  # Ray asks it to leave before it is killed
    finally:
        run.watch.shutdown()


def test_a_top_k_that_died_with_its_writer_is_told_soon(settings, made) -> None:
    run = Run(settings, made, replicas=1)
    try:
        lost: list[str] = []
        run.pool.lost = lost.extend
        run.pool.deliver = lambda found: run.scores.update({found.rollout_id: found})
        pid = ray.get(run.writer.__ray_call__.remote(lambda writer: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        time.sleep(5)  # until then its node still has what it kept there
        begin = time.monotonic()
        run.submit()
        run.watch.wait_until(lambda: len(lost) + len(run.scores) == COUNT, "the losses")
        assert time.monotonic() - begin < 30
        assert lost
        assert {*lost, *run.scores} == {rollout.rollout_id for rollout in made}
        # Written and submitted anew, they are scored.
        for rollout in made:
            if rollout.rollout_id in lost:
                run.pool.submit(rollout)
        run.drive(until=COUNT)
        run.pool.drop(run.scores)
    finally:
        run.watch.shutdown()
