"""A thousand rollouts through pool, servers and stores: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from fake_replicas import FakeWatch, Remote, recovery

from actors.teacher.service import TeacherServer
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ActorDied
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.types import (
    Rollout,
    RolloutScores,
    ScoreRequest,
    SignalReceipt,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)

V, K, STEP = 50, 4, 20
SETTINGS = TeacherSettings(topk=K, batch_tokens=100, store_bytes=1 << 30)


class Uniform:
    """Every token as likely as any other."""

    def info(self) -> TeacherInfo:
        return TeacherInfo("uniform", V, 1024, ("topk",))

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        return [self._answer(request) for request in requests]

    def close(self) -> None: ...

    @staticmethod
    def _answer(request: ScoreRequest) -> TeacherAnswer:
        m = len(request.response_ids)
        every = np.full((m, K), -np.log(V), np.float32)
        ids = np.tile(np.arange(K, dtype=np.int32), (m, 1))
        signal = TopKSignal(ids, every.copy())
        return TeacherAnswer(request.rollout_id, every[:, 0], every[:, :2], signal)


class Process:
    """A replica without Ray: its server answers when its reference is asked for.

    References are (process, method, what gives the answer).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.server = TeacherServer(Uniform(), SETTINGS)
        self.dead = False
        self.score = Remote(lambda requests: (self, "score", lambda: self.server.score(requests)))
        self.take = Remote(self._take)
        self.ready = Remote(lambda: (self, "loaded", lambda: None))
        self.forget = Remote(lambda ids: self.dead or self.server.signals.forget(ids))

    def value(self, ref):
        if self.dead:
            raise ActorDied(self.name, "killed")
        return ref[2]()

    def _take(self, keep, forget):
        signals = {} if self.dead else self.server.signals.take(keep, forget=forget)
        rows = sum(map(len, keep.values()))
        receipt = SignalReceipt(rows, sum(signal.nbytes for signal in signals.values()))
        return signals, (self, "take", lambda: receipt)

    @property
    def held_bytes(self) -> int:
        return self.server.signals.nbytes


def rollout(name: str, m: int) -> Rollout:
    floats = np.zeros(m, np.float32)
    topk = TopK(np.tile(np.arange(2, dtype=np.int32), (m, 1)), np.full((m, 2), -2, np.float32))
    ids, mask = np.full(m, 7, np.int32), np.ones(m, np.uint8)
    return Rollout(name, name, 0, ids[:3], ids, mask, floats, floats, "stop", 0, topk)


def deliver(scored: set[str], scores: RolloutScores) -> None:
    scored.add(scores.rollout_id)


@pytest.mark.parametrize("deaths", [False, True])
def test_a_thousand_rollouts(deaths: bool) -> None:
    rng = np.random.default_rng(1)
    watch: Any = FakeWatch([Process("a"), Process("b")], make=Process)
    processes = watch.current
    care = recovery("teacher replica", "teacher", watch.start, max_restarts=1000)
    pool = TeacherPool(list(processes.items()), 100, watch, care)
    peaks = []
    for step in range(1000 // STEP):
        made = [rollout(f"{step}/{i}", int(rng.integers(3, 60))) for i in range(STEP)]
        abandoned = [r.rollout_id for r in made if rng.random() < 0.2]
        for one in made:
            pool.submit(one)
            pool.pump()
        pool.drop(abandoned)  # queued or being scored
        wanted = [r for r in made if r.rollout_id not in abandoned]
        scored: set[str] = set()
        peak = 0
        pool.deliver = partial(deliver, scored)
        while len(scored) < len(wanted) or pool._batches:
            watch.turn("news")
            peak = max(peak, sum(p.held_bytes for p in processes.values()))
            if deaths and rng.random() < 0.1:
                processes["a"].dead = True
        assert scored == {r.rollout_id for r in wanted}
        peaks.append(peak)
        keep = {
            r.rollout_id: np.flatnonzero(rng.random(len(r.response_ids)) < 0.5) for r in wanted[::2]
        }
        [parts] = pool.take([keep])
        taken = {key: signal for part in parts for key, signal in part.items()}
        assert {key: len(signal.ids) for key, signal in taken.items()} == {
            key: len(rows) for key, rows in keep.items() if len(rows)
        }
        pool.drop([r.rollout_id for r in wanted[1::2]])
        assert [p.held_bytes for p in processes.values()] == [0, 0]
        assert not pool._tasks
    # A row takes 8 K bytes; no step ever held more than its own rollouts.
    assert 0 < max(peaks) <= STEP * 60 * 8 * K
    assert max(peaks[25:]) <= 1.3 * max(peaks[:25])
    assert (pool.stats().retried_rollouts > 0) == deaths
