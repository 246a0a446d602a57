"""What a teacher pool did since its account was last opened, in numbers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from opd_ray.pools.spans import MOST_SPANS, Span
from opd_ray.types import SignalReceipt


@dataclass
class PoolStats:
    """Counts, and says what follows from the counts."""

    clock: Callable[[], float]  # seconds
    batch_tokens: int  # the budget of one batch
    busy_since: float | None = None  # None: no replica has work
    busy_before: float = 0.0  # seconds
    batches: int = 0
    sent_tokens: int = 0
    scored_tokens: int = 0  # prompt and response tokens
    tokens_by_replica: Counter[str] = field(default_factory=Counter)
    waited_rollouts: int = 0
    waiting_seconds: float = 0.0  # in the queue, summed over rollouts
    longest_wait_seconds: float = 0.0
    longest_queue_tokens: int = 0
    retried_rollouts: int = 0  # asked again because a replica died
    request_retries: int = 0  # requests that teachers behind a URL had to send again
    restarts: int = 0
    signal_rows: int = 0  # handed to the trainers to learn from
    signal_bytes: int = 0
    looked_at_bytes: int = 0  # of rows that trainers saw before the filter chose, for exact scores
    # When each replica had a batch, that it may have begun later.
    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=MOST_SPANS))

    def opened_anew(self) -> PoolStats:
        """An account from zero; work that is under way counts from now on."""
        since = None if self.busy_since is None else self.clock()
        return PoolStats(self.clock, self.batch_tokens, since)

    def as_of_now(self, replicas: Iterable[str]) -> PoolStats:
        """A copy in which nothing counts any more, with the replicas that can score now."""
        tokens = Counter({name: self.tokens_by_replica[name] for name in replicas})
        busy = self.busy_seconds
        return replace(self, busy_since=None, busy_before=busy, tokens_by_replica=tokens)

    @property
    def replicas(self) -> int:
        """How many have an entry, in a copy those that can score."""
        return len(self.tokens_by_replica)

    @property
    def busy_seconds(self) -> float:
        """Wall time in which at least one replica had work."""
        since = self.busy_since
        return self.busy_before + (0.0 if since is None else self.clock() - since)

    @property
    def batch_fill(self) -> float:
        """Tokens a batch, as a share of the budget."""
        return self.sent_tokens / (self.batches * self.batch_tokens) if self.batches else 0.0

    def queued(self, tokens: int) -> None:
        """The queue is as long as that now."""
        self.longest_queue_tokens = max(self.longest_queue_tokens, tokens)

    def waited(self, seconds: float) -> None:
        """One rollout left the queue."""
        self.waited_rollouts += 1
        self.waiting_seconds += seconds
        self.longest_wait_seconds = max(self.longest_wait_seconds, seconds)

    def sent(self, tokens: int) -> None:
        """One batch went out."""
        self.batches += 1
        self.sent_tokens += tokens
        if self.busy_since is None:
            self.busy_since = self.clock()

    def worked(self, replica: str, since: float) -> None:
        """A batch that was sent then is no longer with its replica."""
        self.spans.append(Span(replica, since, self.clock()))

    def scored(self, replica: str, tokens: int, request_retries: int) -> None:
        """One batch came back."""
        self.scored_tokens += tokens
        self.tokens_by_replica[replica] += tokens
        self.request_retries += request_retries

    def idle(self) -> None:
        """No replica has work any more."""
        self.busy_before, self.busy_since = self.busy_seconds, None

    def handed_out(self, receipt: SignalReceipt, *, kept: bool) -> None:
        """Rows went to a trainer: those that the filter kept, or all for a look before it chose."""
        if kept:
            self.signal_rows += receipt.rows
            self.signal_bytes += receipt.nbytes
        else:
            self.looked_at_bytes += receipt.nbytes
