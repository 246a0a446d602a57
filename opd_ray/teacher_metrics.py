"""What a training step asked of its teachers, in numbers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opd_ray.pools.teachers.account import PoolStats


def teacher_metrics(
    pools: Mapping[str, PoolStats],
    *,
    alone_seconds: float,
    step_seconds: float,
    tokens: int,
    kept_tokens: int,
) -> dict[str, float]:
    """All ``teacher/...`` figures of a step.

    Args:
        pools: the account of every teacher's pool over this step, by its name.
        alone_seconds: how long the step waited for teachers alone, all rollouts being written.
        step_seconds: how long it took.
        tokens: response tokens of the step.
        kept_tokens: those that were trained on.
    """
    accounts = list(pools.values())
    rows = sum(pool.signal_rows for pool in accounts)
    nbytes = sum(pool.signal_bytes for pool in accounts)
    values: dict[str, float] = {
        **_work("teacher", accounts),
        "teacher/bottleneck_share": _ratio(alone_seconds, step_seconds),
        "teacher/retries": sum(pool.retried_rollouts for pool in accounts),
        "teacher/request_retries": sum(pool.request_retries for pool in accounts),
        "teacher/restarts": sum(pool.restarts for pool in accounts),
        "teacher/replicas": sum(pool.replicas for pool in accounts),
        "teacher/signal_bytes": nbytes,
        "teacher/signal_bytes_per_trained_token": _ratio(nbytes, kept_tokens),
        # Had the filter not chosen: the same bytes a row, for every response token.
        "teacher/signal_bytes_all_rows": _ratio(nbytes, rows) * tokens,
        "teacher/exact_scoring_bytes": sum(pool.looked_at_bytes for pool in accounts),
    }
    for name, pool in pools.items() if len(pools) > 1 else ():
        values |= _work(f"teacher/{name}", [pool])
    for pool in accounts:
        for replica, scored in pool.tokens_by_replica.items():
            values[f"teacher/replica/{replica}/tokens"] = scored
    return values


def _work(prefix: str, pools: Sequence[PoolStats]) -> dict[str, float]:
    """How much was scored, how fast, and what waited for it."""
    scored = sum(pool.scored_tokens for pool in pools)
    waited = sum(pool.waited_rollouts for pool in pools)
    batches = sum(pool.batches for pool in pools)
    fill = sum(pool.batch_fill * pool.batches for pool in pools)
    return {
        f"{prefix}/tokens": scored,
        # Of several teachers, the mean while each of them works.
        f"{prefix}/tokens_per_second": _ratio(scored, sum(pool.busy_seconds for pool in pools)),
        f"{prefix}/queue_tokens": max(pool.longest_queue_tokens for pool in pools),
        f"{prefix}/wait_mean_seconds": _ratio(sum(pool.waiting_seconds for pool in pools), waited),
        f"{prefix}/wait_max_seconds": max(pool.longest_wait_seconds for pool in pools),
        f"{prefix}/batch_fill": _ratio(fill, batches),
    }


def _ratio(part: float, whole: float) -> float:
    """0 where there is nothing to share."""
    return part / whole if whole else 0.0
