"""Per-token scores of a batch: flat arrays over its N response tokens, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import log

import numpy as np

from opd_ray.errors import OpdError
from opd_ray.tip.ragged import count_per_rollout, positions, rollout_starts

_AT_TOPK = "a teacher that scores the student's top-k (rollout.record_topk)"
# Score -> what gives it. The text ends the error of a rule that misses one.
SCORE_SOURCES = {
    "entropy": "every rollout actor; scoring=exact works it out again in the trainer",
    "reverse_kl": f"{_AT_TOPK}, or scoring=exact",
    "forward_kl": f"{_AT_TOPK}, or scoring=exact",
    "jsd": f"{_AT_TOPK}, or scoring=exact",
    "teacher_logprob": "every teacher",
    "teacher_entropy": "scoring=exact, or a teacher that sees its whole distribution",
    "teacher_mass": _AT_TOPK,
    "union_forward_kl": "a teacher that also returns its own top-k ids",
    "rollout_logprob": "every rollout actor",
    "position": "always there",
}
# Least and greatest value a score may take (nats; teacher_mass a probability); entropy also has ln
# V.
_RANGES = {
    "entropy": (0.0, np.inf),
    "reverse_kl": (0.0, np.inf),
    "forward_kl": (0.0, np.inf),
    "jsd": (0.0, log(2.0)),
    "teacher_logprob": (-np.inf, 0.0),
    "teacher_entropy": (0.0, np.inf),
    "teacher_mass": (0.0, 1.0),
    "union_forward_kl": (0.0, np.inf),
    "rollout_logprob": (-np.inf, 0.0),
}
# Beyond its range by more than this a value is an error; by less it is rounding, and set to the
# bound.
_ROUNDING = 1e-3


class MissingScoreError(OpdError, ValueError):
    """A rule asks for a score that this batch does not have."""

    def __init__(self, score: str, wanted_by: str) -> None:
        super().__init__(
            f"{wanted_by} needs the score {score!r}, which this batch does not have; "
            f"it comes from: {SCORE_SOURCES[score]}"
        )


@dataclass(frozen=True)
class TokenScores:
    """Scores of the N response tokens of R rollouts, rollout after rollout.

    Row t describes the distribution that predicted token t. Values are float32; tokens with
    response_mask 0 may hold anything, NaN too, and are never read. A score is None where the source
    cannot give it.

    Raises ValueError, naming the score, rollout and position, on a wrong shape, a mask other than 0
    and 1, or, at a token with mask 1, a value that is not finite or out of its range (rounding up
    to 1e-3 beyond the range is set to the bound).
    """

    lengths_R: np.ndarray  # [R] int64, response tokens of each rollout
    response_mask_N: np.ndarray  # [N] bool, True = written by the student
    vocab_size: int
    entropy_N: np.ndarray | None = None  # nats, student, full vocabulary
    reverse_kl_N: np.ndarray | None = None  # nats, KL(student || teacher)
    forward_kl_N: np.ndarray | None = None  # nats, KL(teacher || student)
    jsd_N: np.ndarray | None = None  # nats, Jensen-Shannon divergence, at most ln 2
    teacher_logprob_N: np.ndarray | None = None  # nats, of the sampled token
    teacher_entropy_N: np.ndarray | None = None  # nats
    teacher_mass_N: np.ndarray | None = None  # teacher's probability of the student's top-K
    union_forward_kl_N: np.ndarray | None = None  # nats, forward KL renormalised on both top-Ks
    rollout_logprob_N: np.ndarray | None = None  # nats, student's, of the sampled token
    position_N: np.ndarray | None = None  # within the rollout, from 0; worked out where not given

    def __post_init__(self) -> None:
        lengths_R = np.asarray(self.lengths_R, dtype=np.int64)
        if lengths_R.ndim != 1 or np.any(lengths_R < 0):
            raise ValueError(f"lengths_R must be [R] lengths of at least 0, not {self.lengths_R!r}")
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, not {self.vocab_size}")
        mask_N = np.asarray(self.response_mask_N)
        _check_shape("response_mask", mask_N, lengths_R)
        if mask_N.dtype != np.bool_:
            if not np.all((mask_N == 0) | (mask_N == 1)):
                raise ValueError("response_mask must hold 0 and 1 only")
            mask_N = mask_N.astype(np.bool_)
        position_N = positions(lengths_R) if self.position_N is None else self.position_N
        _check_shape("position", position_N, lengths_R)
        object.__setattr__(self, "lengths_R", lengths_R)
        object.__setattr__(self, "response_mask_N", mask_N)
        object.__setattr__(self, "position_N", position_N)
        for name in _RANGES:
            values_N = getattr(self, f"{name}_N")
            if values_N is not None:
                object.__setattr__(self, f"{name}_N", self._checked(name, values_N))

    def _checked(self, name: str, values_N: np.ndarray) -> np.ndarray:
        """``values_N`` as float32 within the range of ``name``; ValueError if it is far off."""
        values_N = np.asarray(values_N, dtype=np.float32)
        _check_shape(name, values_N, self.lengths_R)
        low, high = _RANGES[name]
        if name.endswith("entropy"):
            high = log(self.vocab_size)
        mask_N = self.response_mask_N
        least = values_N.min(where=mask_N, initial=np.inf)
        greatest = values_N.max(where=mask_N, initial=-np.inf)
        if not mask_N.any() or (
            low <= least and greatest <= high and np.isfinite(least + greatest)
        ):
            return values_N
        wrong_N = ~np.isfinite(values_N)
        wrong_N |= (values_N < low - _ROUNDING) | (values_N > high + _ROUNDING)
        wrong_N &= mask_N
        if wrong_N.any():
            index = int(np.argmax(wrong_N))
            rollout = int(np.searchsorted(np.cumsum(self.lengths_R), index, side="right"))
            position = index - int(rollout_starts(self.lengths_R)[rollout])
            raise ValueError(
                f"{name} is {values_N[index]} at rollout {rollout}, position {position}; it must "
                f"be finite and in [{low:.6g}, {high:.6g}]; its source: {SCORE_SOURCES[name]}"
            )
        return np.clip(values_N, low, high)

    def student_tokens(self) -> TokenScores:
        """The same rollouts with only the tokens of mask 1; positions stay as they were."""
        mask_N = self.response_mask_N
        if mask_N.all():
            return self
        chosen_M = np.flatnonzero(mask_N)
        kept = {
            field.name: getattr(self, field.name)[chosen_M]
            for field in fields(self)
            if field.name.endswith("_N") and getattr(self, field.name) is not None
        }
        return replace(self, lengths_R=count_per_rollout(mask_N, self.lengths_R), **kept)

    def has(self, name: str) -> bool:
        """Whether the batch has the score ``name``."""
        return getattr(self, f"{name}_N") is not None

    def get(self, name: str, wanted_by: str) -> np.ndarray:
        """The score ``name``, [N]; MissingScoreError, naming ``wanted_by``, if it is None."""
        values_N = getattr(self, f"{name}_N")
        if values_N is None:
            raise MissingScoreError(name, wanted_by)
        return values_N


def _check_shape(name: str, values_N: np.ndarray, lengths_R: np.ndarray) -> None:
    total = int(lengths_R.sum())
    if values_N.shape != (total,):
        raise ValueError(
            f"{name} has shape {values_N.shape}, but the lengths of the {len(lengths_R)} rollouts "
            f"sum to {total} tokens"
        )
