"""What a teacher pool did since its account was last opened, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opd_ray.types import SignalReceipt


@dataclass(frozen=True)
class PoolStats:
    """Account of a pool since it was opened, and what is in it now."""

    queued_rollouts: int
    queued_tokens: int
    in_flight_batches: int
    replicas: int  # that can score now
    batches: int
    scored_rollouts: int
    scored_tokens: int  # prompt and response tokens
    waited_rollouts: int
    waiting_seconds: float  # in the queue, summed over rollouts
    longest_wait_seconds: float
    longest_queue_tokens: int
    batch_fill: float  # tokens a batch, as a share of the budget
    busy_seconds: float  # wall time in which at least one replica had work
    retried_rollouts: int  # asked again because a replica died
    request_retries: int  # requests that teachers behind a URL had to send again
    restarts: int
    signal_rows: int  # handed to the trainers to learn from
    signal_bytes: int
    looked_at_bytes: int  # of rows that trainers saw before the filter chose, for exact scores
    tokens_by_replica: dict[str, int]  # of those that can score now


class PoolAccount:
    """Adds up; ``clock`` gives seconds."""

    def __init__(self, batch_tokens: int, clock: Callable[[], float]) -> None:
        self._batch_tokens = batch_tokens
        self._clock = clock
        self._busy_since: float | None = None
        self.open()

    def open(self) -> None:
        """Start from zero; work that is under way counts from now on."""
        self.batches = self.scored_rollouts = self.scored_tokens = 0
        self.waited_rollouts = self.retried_rollouts = self.restarts = 0
        self.request_retries = 0
        self.signal_rows = self.signal_bytes = self.looked_at_bytes = 0
        self.waiting_seconds = self.longest_wait = self._busy_seconds = 0.0
        self.longest_queue_tokens = self._sent_tokens = 0
        self.tokens_by_replica: Counter[str] = Counter()
        if self._busy_since is not None:
            self._busy_since = self._clock()

    def queued(self, tokens: int) -> None:
        """The queue is as long as that now."""
        self.longest_queue_tokens = max(self.longest_queue_tokens, tokens)

    def waited(self, seconds: float) -> None:
        """One rollout left the queue."""
        self.waited_rollouts += 1
        self.waiting_seconds += seconds
        self.longest_wait = max(self.longest_wait, seconds)

    def sent(self, tokens: int) -> None:
        """One batch went out."""
        self.batches += 1
        self._sent_tokens += tokens
        if self._busy_since is None:
            self._busy_since = self._clock()

    def scored(self, replica: str, rollouts: int, tokens: int, request_retries: int) -> None:
        """One batch came back."""
        self.scored_rollouts += rollouts
        self.scored_tokens += tokens
        self.tokens_by_replica[replica] += tokens
        self.request_retries += request_retries

    def idle(self) -> None:
        """No replica has work any more."""
        self._busy_seconds = self.busy_seconds
        self._busy_since = None

    @property
    def busy_seconds(self) -> float:
        """Wall time in which at least one replica had work."""
        since = self._busy_since
        return self._busy_seconds + (0.0 if since is None else self._clock() - since)

    def handed_out(self, receipt: SignalReceipt, *, kept: bool) -> None:
        """Rows went to a trainer: those that the filter kept, or all for a look before it chose."""
        if kept:
            self.signal_rows += receipt.rows
            self.signal_bytes += receipt.nbytes
        else:
            self.looked_at_bytes += receipt.nbytes

    def stats(
        self,
        *,
        queued_rollouts: int,
        queued_tokens: int,
        in_flight_batches: int,
        replicas: Sequence[str],
    ) -> PoolStats:
        """The account so far, with what is in the pool now."""
        budget = self.batches * self._batch_tokens
        return PoolStats(
            queued_rollouts=queued_rollouts,
            queued_tokens=queued_tokens,
            in_flight_batches=in_flight_batches,
            replicas=len(replicas),
            batches=self.batches,
            scored_rollouts=self.scored_rollouts,
            scored_tokens=self.scored_tokens,
            waited_rollouts=self.waited_rollouts,
            waiting_seconds=self.waiting_seconds,
            longest_wait_seconds=self.longest_wait,
            longest_queue_tokens=self.longest_queue_tokens,
            batch_fill=self._sent_tokens / budget if budget else 0.0,
            busy_seconds=self.busy_seconds,
            retried_rollouts=self.retried_rollouts,
            request_retries=self.request_retries,
            restarts=self.restarts,
            signal_rows=self.signal_rows,
            signal_bytes=self.signal_bytes,
            looked_at_bytes=self.looked_at_bytes,
            tokens_by_replica={name: self.tokens_by_replica[name] for name in replicas},
        )
