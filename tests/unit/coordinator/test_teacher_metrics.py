"""The teacher's figures of a step, and what the closing table makes of them."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from fake_replicas import (
    Clock,
    FakeReplica,
    FakeWatch,
    answer_all,
    collect,
    make_kept_pool,
    make_pool,
    pool_of,
    rollout,
    sent,
)
from rich.console import Console

from opd_ray.coordinator.metrics import teacher_metrics
from opd_ray.coordinator.report import closing_table
from opd_ray.pools.scorer import RolloutScorer
from opd_ray.pools.teachers.account import PoolStats
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.turns import AllAtOnce
from opd_ray.types import RolloutRequest, Sampling


def two_batches(batch_tokens: int = 40) -> PoolStats:
    """20 tokens after a wait of 1 and 3 s, then 10 tokens at once; 5 s of work each."""
    pool, _, clock = make_pool(1, batch_tokens=batch_tokens)
    pool.submit(rollout("a"))
    clock.now = 2.0
    pool.submit(rollout("b"))
    clock.now = 3.0
    pool.pump()
    clock.now = 8.0
    collect(pool, sent(pool)[0])
    pool.submit(rollout("c"))
    pool.pump()
    clock.now = 13.0
    collect(pool, sent(pool)[0])
    pool.take([{"a": np.array([0, 2]), "b": np.array([1]), "c": np.zeros(0, np.int32)}])
    return pool.stats()


def metrics(*pools: PoolStats, tokens: int = 9, kept_tokens: int = 0) -> dict[str, float]:
    """Of teachers a, b, ... in a step of 20 s, 5 of which it waited for them alone."""
    return teacher_metrics(
        dict(zip("ab", pools, strict=False)),
        alone_seconds=5.0,
        step_seconds=20.0,
        tokens=tokens,
        kept_tokens=kept_tokens,
    )


def test_figures_of_one_pool_by_hand() -> None:
    assert metrics(two_batches(), tokens=15, kept_tokens=3) == {
        "teacher/tokens": 30,
        "teacher/tokens_per_second": 30 / 10,
        "teacher/queue_tokens": 20,
        "teacher/wait_mean_seconds": pytest.approx(4 / 3),
        "teacher/wait_max_seconds": 3.0,
        "teacher/batch_fill": pytest.approx(30 / 80),
        "teacher/bottleneck_share": 0.25,
        "teacher/retries": 0,
        "teacher/request_retries": 0,
        "teacher/restarts": 0,
        "teacher/replicas": 1,
        "teacher/signal_bytes": 300,
        "teacher/signal_bytes_per_trained_token": 100.0,
        "teacher/signal_bytes_all_rows": 1500.0,
        "teacher/exact_scoring_bytes": 0,
        "teacher/replica/teacher 0/tokens": 30,
    }


def test_two_teachers_add_up() -> None:
    values = metrics(two_batches(), two_batches(batch_tokens=80), tokens=30, kept_tokens=6)
    assert values["teacher/tokens"] == 60
    # Whether one works after the other or beside it, neither is any faster.
    assert values["teacher/tokens_per_second"] == 60 / 20
    for name, fill in (("a", 30 / 80), ("b", 30 / 160)):
        of = {key: values[f"teacher/{name}/{key}"] for key in ("tokens", "tokens_per_second")}
        assert of == {"tokens": 30, "tokens_per_second": 3.0}
        assert values[f"teacher/{name}/queue_tokens"] == 20
        assert values[f"teacher/{name}/wait_mean_seconds"] == pytest.approx(4 / 3)
        assert values[f"teacher/{name}/wait_max_seconds"] == 3.0
        assert values[f"teacher/{name}/batch_fill"] == pytest.approx(fill)
    assert values["teacher/batch_fill"] == pytest.approx((30 / 80 + 30 / 160) / 2)
    assert (values["teacher/signal_bytes"], values["teacher/signal_bytes_all_rows"]) == (600, 3000)


def test_a_step_that_keeps_nothing_divides_by_nothing() -> None:
    pool, _, _ = make_pool(1)
    values = teacher_metrics(
        {"teacher": pool.stats()}, alone_seconds=0.0, step_seconds=0.0, tokens=9, kept_tokens=0
    )
    assert values.pop("teacher/replicas") == 1
    assert set(values.values()) == {0.0}


def test_retries_and_restarts_are_counted() -> None:
    pool, [first], supervisor = make_kept_pool(1)
    pool.submit(rollout("a"))
    pool.pump()
    first.die()
    collect(pool, (first, "score", 0))
    values = metrics(pool.stats())
    assert (values["teacher/retries"], values["teacher/restarts"]) == (1, 1)
    assert values["teacher/replicas"] == 0  # it is still coming up
    assert len(supervisor.started) == 1


def test_requests_that_a_server_was_sent_again_are_counted() -> None:
    pool, [replica], _ = make_pool(1)
    replica.retries_a_rollout = 2
    for name in ("a", "b"):
        pool.submit(rollout(name))
    pool.pump()
    collect(pool, sent(pool)[0])
    assert metrics(pool.stats())["teacher/request_retries"] == 4


def test_rows_looked_at_before_the_filter_chose_are_counted_apart() -> None:
    """As with exact scores: three rows go out for a look, then the one that is kept."""
    pool, _, _ = make_pool(1)
    pool.submit(rollout("a"))
    pool.pump()
    collect(pool, sent(pool)[0])
    pool.take([{"a": np.arange(3)}], forget=False)
    pool.take([{"a": np.array([1])}])
    values = metrics(pool.stats(), tokens=3, kept_tokens=1)
    assert values["teacher/exact_scoring_bytes"] == 300
    assert values["teacher/signal_bytes"] == values["teacher/signal_bytes_per_trained_token"] == 100
    assert values["teacher/signal_bytes_all_rows"] == 300


def test_a_slow_replica_is_seen_to_get_less() -> None:
    pool, [quick, slow], _ = make_pool(2, batch_tokens=20)
    for number in range(12):
        pool.submit(rollout(f"r{number}"))
    pool.pump()
    answer_all(pool, quick)
    collect(pool, next(ref for ref in sent(pool) if ref[0] is slow))
    values = metrics(pool.stats())
    assert values["teacher/replica/teacher 0/tokens"] == 80
    assert values["teacher/replica/teacher 1/tokens"] == 20


class Rollouts:
    """A rollout pool that brings one rollout at a time."""

    busy = False

    def __init__(self, rollouts, watch):
        self._rollouts = list(rollouts)
        self._watch = watch

    def start(self, requests, sampling, deliver, *, record, lost):
        self.busy = True
        for one in self._rollouts:
            self._watch.when_ready((one, "rollout", 0), lambda ref: deliver([ref[0]]))
        self._watch.when_ready(("", "rollout", 0), self._ended)

    def _ended(self, ref):
        self.busy = False


class Waits(FakeWatch):
    """Lets a second pass for every rollout and batch."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock

    def turn(self, what):
        if not self.soonest:
            self._clock.now += 1.0
        super().turn(what)


def test_the_teacher_is_the_bottleneck_once_all_is_written(monkeypatch) -> None:
    clock = Clock()
    watch = Waits(clock)
    pool, _, _ = pool_of([FakeReplica("teacher 0")], batch_tokens=10, watch=watch)
    monkeypatch.setattr("time.perf_counter", clock)
    made = [rollout(name) for name in "abc"]
    scorer = RolloutScorer(
        watch, Rollouts(made, watch), TeacherRouter({"teacher": pool}, {}), AllAtOnce(watch)
    )
    prompt = np.zeros(5, np.int32)
    requests = [RolloutRequest(name, name, 0, prompt, 0) for name in "abc"]
    scored = scorer.start(requests, Sampling(), dict.fromkeys("abc", prompt)).result()
    assert [j.rollout.rollout_id for j in scored.rollouts] == ["a", "b", "c"]
    # Written after 1, 2 and 3 seconds; one later the stream ends, then comes a batch a second.
    assert scored.written_R.tolist() == [1.0, 2.0, 3.0]
    assert scored.scored_R.tolist() == [5.0, 6.0, 7.0]
    assert scored.teacher_alone_seconds == 4.0


def table_text(rows: list[dict[str, float]]) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(closing_table(rows, {}, {}))
    return file.getvalue()


def test_the_report_says_what_the_teacher_did() -> None:
    step = {
        "train/loss": 1.0,
        "rollout/tokens": 100.0,
        "train/kept_tokens": 50.0,
        "seconds/rollout_and_teacher": 4.0,
        "seconds/train": 1.0,
        "seconds/step": 6.0,
        "seconds/idle": 0.0,
    }
    old = table_text([step])
    assert "teacher tokens/s" not in old
    figures = metrics(two_batches(), tokens=30_000, kept_tokens=3)
    assert "exact scores" not in table_text([{**step, **figures}])
    figures["teacher/exact_scoring_bytes"] = 3 << 20
    text = table_text([{**step, **figures}, {**step, **figures, "teacher/retries": 7}])
    for row in (
        r"teacher tokens/s while working *│ *│ *3 ",
        r"waiting for the teacher alone *│ *│ *25.0%",
        r"signal a step, exact scores *│ *│ *3.00 MiB",
        r"signal a step, kept of all *│ *│ *0.00 MiB of 2.86",
        r"asked again, a teacher died *│ *│ *7 ",
    ):
        assert re.search(row, text), text
