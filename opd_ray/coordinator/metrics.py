"""The numbers of one training step, by name: what it saw and chose, its teachers, its seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from opd_ray.coordinator.source_metrics import source_metrics
from opd_ray.coordinator.turn_metrics import rollout_metrics, turn_metrics
from opd_ray.pools.scorer import ScoredRollout
from opd_ray.pools.spans import Span
from opd_ray.pools.teachers.account import PoolStats
from opd_ray.step_account import StepAccount
from opd_ray.tip import Selection, TokenScores

# Scores of which every step tells mean and quantiles.
SHOWN = ("entropy", "reverse_kl", "forward_kl")
_QUANTILES = (0.1, 0.5, 0.9, 0.99)
# Whose work a stage is, but for that of rollout actors and teachers.
TRAINERS, FILTER, WEIGHTS = "trainers", "filter", "weights"
_LANES = {"train": TRAINERS, "exact_scores": TRAINERS, "filter": FILTER, "sync": WEIGHTS}


@dataclass(frozen=True)
class StepSnapshot:
    """What one step saw and chose; the last one of a run is drawn in its report."""

    scored: Sequence[ScoredRollout]
    scores: TokenScores
    selection: Selection
    weights_age: int = 0  # steps that have been taken with other weights than wrote its rollouts


def step_metrics(
    snapshot: StepSnapshot,
    account: StepAccount,
    peak_memory_bytes: dict[str, int],
    seconds: dict[str, float],
    pools: Mapping[str, PoolStats],
    alone_seconds: float,
) -> dict[str, float]:
    """All metrics of a step.

    Args:
        snapshot: what it saw and chose.
        account: its gradient step.
        peak_memory_bytes: by process.
        seconds: the stage clock's report.
        pools: the account of every teacher's pool over this step, by its name.
        alone_seconds: how long it waited for teachers alone.
    """
    scored, scores, selection = snapshot.scored, snapshot.scores, snapshot.selection
    rollouts = [s.rollout for s in scored]
    lengths = np.array([rollout.written_tokens for rollout in rollouts])
    tokens = int(lengths.sum())
    student = scores.student_tokens()
    values: dict[str, float] = {
        "train/loss": account.loss,
        "train/grad_norm": account.grad_norm,
        "train/learning_rate": account.learning_rate,
        "train/kept_tokens": account.kept_tokens,
        "train/trunk_tokens": account.trunk_tokens,
        "train/padding_share": account.padding_share,
        "train/skipped": float(account.skipped),
        "rollout/tokens": tokens,
        "rollout/length_mean": float(lengths.mean()),
        "rollout/length_max": float(lengths.max()),
        "rollout/truncated": float(np.mean([r.finish_reason != "stop" for r in rollouts])),
        "rollout/weights_version": min(r.weights_version for r in rollouts),
        **rollout_metrics(rollouts),
        **turn_metrics(rollouts, scores, selection),
        **source_metrics(rollouts, scores, selection),
        "tokens_per_second/step": tokens / seconds["seconds/step"],
        "idle_share": seconds["seconds/idle"] / seconds["seconds/step"],
        **seconds,
        **teacher_metrics(
            pools,
            alone_seconds=alone_seconds,
            step_seconds=seconds["seconds/step"],
            tokens=tokens,
            kept_tokens=account.kept_tokens,
        ),
        **{f"tip/{name}": value for name, value in selection.as_metrics().items()},
    }
    for name in SHOWN:
        if student.has(name):
            values |= _spread(f"scores/{name}", student.get(name, "the step's metrics"))
    for name in [name for name in values if name.startswith("scores/entropy_")]:
        values[name.replace("entropy", "h")] = values[name] / math.log(student.vocab_size)
    # At a loss temperature other than 1 the trainer has nothing to compare with vLLM.
    # To weights of an earlier step it has no gap either.
    if not math.isnan(account.gap_mean) and not snapshot.weights_age:
        values |= {"sync/gap_mean": account.gap_mean, "sync/gap_max": account.gap_max}
    return values | {f"memory/{name}_bytes": peak for name, peak in peak_memory_bytes.items()}


def lag_metrics(account: StepAccount, age: int) -> dict[str, float]:
    """How far the student has moved since it wrote the rollouts of a step, over the kept tokens.

    ``age``: steps since then. At a loss temperature other than 1 no more is known.
    """
    drift = {
        "lag/log_ratio_mean": account.log_ratio_mean,
        "lag/effective_sample_share": account.effective_sample_share,
    }
    known = {name: value for name, value in drift.items() if not math.isnan(value)}
    return {"lag/age": age, **known}


def _spread(name: str, values_N: np.ndarray) -> dict[str, float]:
    """Mean and quantiles; nothing of no values."""
    if not len(values_N):
        return {}
    quantiles = np.quantile(values_N, _QUANTILES)
    named = {
        f"{name}_q{round(share * 100):02d}": float(value)
        for share, value in zip(_QUANTILES, quantiles, strict=True)
    }
    return {f"{name}_mean": float(values_N.mean()), **named}


class StageClock:
    """Measures one step: nested use is refused, so the stages add up to at most the step.

    ``idle`` is the coordinator's own overhead: the step's wall time in which no stage was running.
    Where a stage's actors report how long they really worked (:meth:`worked`), the rest of that
    stage's wall time (calls, transport) counts as idle too.
    """

    def __init__(self, begun: Callable[[str], object] = lambda name: None) -> None:
        """``begun`` is told the name of every stage that begins."""
        self._begun = begun
        self.begin = self.end = time.perf_counter()
        self._spans: list[Span] = []
        self._stages: dict[str, float] = {}
        self._idle_inside = 0.0
        self._running: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as the named stage."""
        if self._running is not None:
            raise RuntimeError(f"stage {name!r} began inside stage {self._running!r}")
        self._running = name
        self._begun(name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._running = None
            span = Span(name, begin, time.perf_counter())
            self._spans.append(span)
            self._stages[name] = self._stages.get(name, 0.0) + span.end - begin

    def worked(self, name: str, seconds: float) -> None:
        """Say how long the actors of a finished stage really worked."""
        self._idle_inside += max(0.0, self._stages[name] - seconds)

    def spans(self) -> Iterator[Span]:
        """When trainers, filter and weights were at work, by these names."""
        for span in self._spans:
            if span.who in _LANES:
                yield replace(span, who=_LANES[span.who])

    def report(self) -> dict[str, float]:
        """``seconds/<stage>`` for every stage, ``seconds/step`` and ``seconds/idle``."""
        self.end = time.perf_counter()
        step = self.end - self.begin
        idle = max(0.0, step - sum(self._stages.values())) + self._idle_inside
        stages = {f"seconds/{name}": value for name, value in self._stages.items()}
        return {**stages, "seconds/step": step, "seconds/idle": idle}


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
        tokens: that the student wrote in the step.
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
        # Had the filter not chosen: the same bytes a row, for every token that the student wrote.
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
