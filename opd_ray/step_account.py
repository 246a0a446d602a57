"""What a trainer says of a gradient step, added up over its ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StepAccount:
    """A gradient step of one rank, or of several whose accounts were added."""

    loss_sum: float  # sum of weight x divergence over the kept tokens, nats
    weight_sum: float
    kept_tokens: int
    trunk_tokens: int  # tokens the trunks read: shared beginnings once, padding included
    padding_tokens: int
    grad_norm: float  # of the whole model, before clipping; 0 when the step was skipped
    learning_rate: float
    gap_sum: float  # sum of |trainer log-prob - vLLM log-prob| over kept tokens, nats
    gap_max: float
    skipped: bool  # no rank kept a token
    seconds: float  # of the slowest rank
    # Over the kept tokens; a token's ratio is that of its probabilities under the student that was
    # trained and under the one that wrote it. NaN where the gap is.
    log_ratio_sum: float = 0.0  # nats
    ratio_sum: float = 0.0
    ratio_square_sum: float = 0.0

    def __add__(self, other: StepAccount) -> StepAccount:
        """Of the same step on further ranks."""
        return replace(
            self,
            loss_sum=self.loss_sum + other.loss_sum,
            weight_sum=self.weight_sum + other.weight_sum,
            kept_tokens=self.kept_tokens + other.kept_tokens,
            trunk_tokens=self.trunk_tokens + other.trunk_tokens,
            padding_tokens=self.padding_tokens + other.padding_tokens,
            grad_norm=max(self.grad_norm, other.grad_norm),
            gap_sum=self.gap_sum + other.gap_sum,
            gap_max=max(self.gap_max, other.gap_max),
            seconds=max(self.seconds, other.seconds),
            log_ratio_sum=self.log_ratio_sum + other.log_ratio_sum,
            ratio_sum=self.ratio_sum + other.ratio_sum,
            ratio_square_sum=self.ratio_square_sum + other.ratio_square_sum,
        )

    @property
    def loss(self) -> float:
        """Mean divergence over the kept tokens, nats."""
        return self.loss_sum / self.weight_sum if self.weight_sum else 0.0

    @property
    def padding_share(self) -> float:
        """Of the tokens the trunks read."""
        return self.padding_tokens / self.trunk_tokens if self.trunk_tokens else 0.0

    @property
    def gap_mean(self) -> float:
        """|trainer log-prob - vLLM log-prob| a kept token, nats."""
        return self.gap_sum / self.kept_tokens if self.kept_tokens else 0.0

    @property
    def log_ratio_mean(self) -> float:
        """log p of the trainer - log p of vLLM when the token was written, a kept token, nats."""
        return self.log_ratio_sum / self.kept_tokens if self.kept_tokens else 0.0

    @property
    def effective_sample_share(self) -> float:
        """How many tokens of the current student the n kept ones are worth, as a share of n.

        (sum of ratios)^2 / (n x sum of squared ratios): 1 where all ratios are equal.
        """
        squares = self.kept_tokens * self.ratio_square_sum
        return self.ratio_sum * self.ratio_sum / squares if squares else 0.0
