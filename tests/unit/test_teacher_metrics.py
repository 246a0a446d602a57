"""The teacher's figures of a step, and what the closing table makes of them."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from fake_replicas import make_kept_pool, make_pool, rollout
from rich.console import Console

from actors.teacher.pool_account import PoolStats
from actors.teacher.router import TeacherRouter
from opd_ray.judge import Judge
from opd_ray.report import Figures, closing_table
from opd_ray.teacher_metrics import JudgingTimes, teacher_metrics
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
    pool.collect(pool.pending_refs()[0])
    pool.submit(rollout("c"))
    pool.pump()
    clock.now = 13.0
    pool.collect(pool.pending_refs()[0])
    pool.take({"a": np.array([0, 2]), "b": np.array([1]), "c": np.zeros(0, np.int32)})
    return pool.stats()


def test_figures_of_one_pool_by_hand() -> None:
    values = teacher_metrics([two_batches()], JudgingTimes(20.0, 5.0), tokens=15, kept_tokens=3)
    assert values == {
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
    }


def test_two_teachers_add_up() -> None:
    pools = [two_batches(), two_batches(batch_tokens=80)]
    values = teacher_metrics(pools, JudgingTimes(20.0, 5.0), tokens=30, kept_tokens=6)
    assert values["teacher/tokens_per_second"] == 60 / 10
    assert values["teacher/batch_fill"] == pytest.approx((30 / 80 + 30 / 160) / 2)
    assert (values["teacher/signal_bytes"], values["teacher/signal_bytes_all_rows"]) == (600, 3000)


def test_a_step_that_keeps_nothing_divides_by_nothing() -> None:
    pool, _, _ = make_pool(1)
    values = teacher_metrics([pool.stats()], JudgingTimes(0.0, 0.0), tokens=9, kept_tokens=0)
    assert values.pop("teacher/replicas") == 1
    assert set(values.values()) == {0.0}


def test_retries_and_restarts_are_counted() -> None:
    pool, [first], keeper = make_kept_pool(1)
    pool.submit(rollout("a"))
    pool.pump()
    first.die()
    pool.collect((first, "score", 0))
    values = teacher_metrics([pool.stats()], JudgingTimes(1.0, 0.0), tokens=9, kept_tokens=0)
    assert (values["teacher/retries"], values["teacher/restarts"]) == (1, 1)
    assert values["teacher/replicas"] == 0  # it is still coming up
    assert len(keeper.started) == 1


def test_requests_that_a_server_was_sent_again_are_counted() -> None:
    pool, [replica], _ = make_pool(1)
    replica.retries_a_rollout = 2
    for name in ("a", "b"):
        pool.submit(rollout(name))
    pool.pump()
    pool.collect(pool.pending_refs()[0])
    values = teacher_metrics([pool.stats()], JudgingTimes(1.0, 0.0), tokens=9, kept_tokens=0)
    assert values["teacher/request_retries"] == 4


class Streams:
    """A rollout pool whose only stream brings one rollout at a time."""

    def __init__(self, rollouts):
        self._rollouts = list(rollouts)
        self.streams: dict[object, int] = {}

    def start(self, requests, sampling, *, record):
        self.streams = {iter(self._rollouts): 0}

    def owner(self, stream):
        return "rollout-0"

    def finished(self, stream, rollouts): ...

    def ended(self, stream):
        self.streams = {}


class Waits:
    """A fleet that finds rollouts ready before scores, and lets time pass."""

    def __init__(self, clock):
        self._clock = clock

    def wait(self, pending, what, *, interruptible=False):
        self._clock.now += 1.0
        return pending[0]

    def get(self, ref, owner):
        return [ref]


def test_the_teacher_is_the_bottleneck_once_all_is_written(monkeypatch) -> None:
    pool, _, clock = make_pool(1, batch_tokens=10)
    monkeypatch.setattr("time.perf_counter", clock)
    made = [rollout(name) for name in "abc"]
    judge = Judge(Waits(clock), Streams(made), TeacherRouter({"teacher": pool}, {}))
    prompt = np.zeros(5, np.int32)
    requests = [RolloutRequest(name, name, 0, prompt, 0) for name in "abc"]
    judged = judge.judge(requests, Sampling(), dict.fromkeys("abc", prompt))
    assert [j.rollout.rollout_id for j in judged] == ["a", "b", "c"]
    # One second a rollout, one for the end of the stream, one for each batch of one.
    assert judge.times == JudgingTimes(seconds=7.0, teacher_alone_seconds=4.0)


def table_text(rows: list[dict[str, float]]) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(closing_table(rows, Figures({}, {})))
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
    figures = teacher_metrics([two_batches()], JudgingTimes(4.0, 1.0), tokens=30_000, kept_tokens=3)
    text = table_text([{**step, **figures}, {**step, **figures, "teacher/retries": 7}])
    for row in (
        r"teacher tokens/s while working *│ *│ *3 ",
        r"judging by the teacher alone *│ *│ *25.0%",
        r"signal a step, kept of all *│ *│ *0.00 MiB of 2.86",
        r"asked again, a teacher died *│ *│ *7 ",
    ):
        assert re.search(row, text), text
