"""What a training step asked of its teachers, in numbers by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.teacher.pool_account import PoolStats


@dataclass(frozen=True)
class JudgingTimes:
    """How long a batch was written and judged, and how much of that the teacher alone took."""

    seconds: float
    teacher_alone_seconds: float  # after the last rollout was written


def teacher_metrics(
    pools: Sequence[PoolStats], times: JudgingTimes, *, tokens: int, kept_tokens: int
) -> dict[str, float]:
    """All ``teacher/...`` figures of a step.

    Args:
        pools: the accounts of the teachers' pools over this step.
        times: of its judging.
        tokens: response tokens of the step.
        kept_tokens: those that were trained on.
    """
    busy = max(pool.busy_seconds for pool in pools)
    waited = sum(pool.waited_rollouts for pool in pools)
    batches = sum(pool.batches for pool in pools)
    fill = sum(pool.batch_fill * pool.batches for pool in pools)
    rows = sum(pool.signal_rows for pool in pools)
    nbytes = sum(pool.signal_bytes for pool in pools)
    return {
        "teacher/tokens_per_second": _ratio(sum(pool.scored_tokens for pool in pools), busy),
        "teacher/queue_tokens": max(pool.longest_queue_tokens for pool in pools),
        "teacher/wait_mean_seconds": _ratio(sum(pool.waiting_seconds for pool in pools), waited),
        "teacher/wait_max_seconds": max(pool.longest_wait_seconds for pool in pools),
        "teacher/batch_fill": _ratio(fill, batches),
        "teacher/bottleneck_share": _ratio(times.teacher_alone_seconds, times.seconds),
        "teacher/retries": sum(pool.retried_rollouts for pool in pools),
        "teacher/request_retries": sum(pool.request_retries for pool in pools),
        "teacher/restarts": sum(pool.restarts for pool in pools),
        "teacher/replicas": sum(pool.replicas for pool in pools),
        "teacher/signal_bytes": nbytes,
        "teacher/signal_bytes_per_trained_token": _ratio(nbytes, kept_tokens),
        # Had the filter not chosen: the same bytes a row, for every response token.
        "teacher/signal_bytes_all_rows": _ratio(nbytes, rows) * tokens,
    }


def _ratio(part: float, whole: float) -> float:
    """0 where there is nothing to share."""
    return part / whole if whole else 0.0
