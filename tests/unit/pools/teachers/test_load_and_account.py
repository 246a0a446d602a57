"""What a pool knows of its replicas' load, and what its account adds up."""

from __future__ import annotations

import numpy as np
from fake_replicas import Clock, answer_all, make_pool, rollout

from opd_ray.pools.teachers.account import PoolStats
from opd_ray.types import SignalReceipt


def test_loads_add_up_and_go_down_again() -> None:
    pool, _, _ = make_pool(2)
    replicas = pool._replicas
    first = replicas.least_loaded()
    assert first is not None
    replicas.change_load(first, 1, 70)
    replicas.change_load(first, 1, 20)
    assert (first.batches, first.outstanding_tokens) == (2, 90)
    second = replicas.least_loaded()
    assert second is not None
    assert second is not first
    replicas.change_load(second, 1, 30)
    replicas.change_load(first, -1, -70)
    # One batch each: the fewer tokens decide.
    assert replicas.least_loaded() is first
    assert (first.batches, first.outstanding_tokens) == (1, 20)


def test_a_batch_that_came_back_is_load_no_more() -> None:
    pool, [replica], _ = make_pool(1)
    pool.submit(rollout("a"))
    pool.pump()
    living = pool._replicas.least_loaded()
    assert living is not None
    assert (living.batches, living.outstanding_tokens > 0) == (1, True)
    answer_all(pool, replica)
    assert (living.batches, living.outstanding_tokens) == (0, 0)


def test_an_account_adds_up() -> None:
    stats = PoolStats(Clock(), 100)
    for retries in (2, 3):
        stats.scored("teacher-0", 10, retries)
    for rows in (4, 5):
        stats.handed_out(SignalReceipt(rows, 10 * rows), kept=False)
        stats.handed_out(SignalReceipt(rows, 10 * rows), kept=True)
    assert (stats.scored_tokens, stats.request_retries) == (20, 5)
    assert (stats.signal_rows, stats.signal_bytes, stats.looked_at_bytes) == (9, 90, 90)
    assert stats.tokens_by_replica == {"teacher-0": 20}
    assert np.isclose(stats.busy_seconds, 0.0)
