"""Per-token scores of a batch: flat arrays over its N response tokens, checked on construction.

The fields of :class:`TokenScores` are the one table of scores: what is not in it is no score.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from math import inf, log
from typing import Annotated, get_type_hints

import numpy as np

from opd_ray.errors import OpdError
from opd_ray.tip.ragged import count_per_rollout, positions, rollout_starts, run_lengths

# What gives a score.
_ROLLOUT = "every rollout actor"
_ROLLOUT_THEN_EXACT = f"{_ROLLOUT}; scoring=exact works it out again in the trainer"
_AT_TOPK = "a teacher that scores the student's top-k (rollout.record_topk)"
_AT_TOPK_OR_EXACT = f"{_AT_TOPK}, or scoring=exact"
_WHOLE = "scoring=exact, or a teacher that sees its whole distribution"
_OWN_TOPK = "a teacher that also returns its own top-k ids"
# Beyond its range by more than this a value is an error; by less it is rounding, and set to the
# bound.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Score:
    """A row of the table: what is known of a score before there are values of it."""

    unit: str
    low: float
    high: float | None  # None: the logarithm of the vocabulary's size
    source: str  # what gives it; ends the error of a rule that misses it
    # Not told by every kind of teacher: a batch that has it for some rollouts only is without it.
    optional: bool = False


_Column = np.ndarray | None


class MissingScoreError(OpdError, ValueError):
    """A rule asks for a score that this batch does not have."""

    def __init__(self, score: str, wanted_by: str) -> None:
        known = SCORES.get(score)
        super().__init__(
            f"{wanted_by} needs the score {score!r}, which this batch does not have; "
            + (f"it comes from: {known.source}" if known else f"scores are: {', '.join(SCORES)}")
        )


@dataclass(frozen=True)
class TokenScores:
    """Scores of the N response tokens of R rollouts, rollout after rollout.

    Row t describes the distribution that predicted token t. Values are float32; tokens with
    response_mask 0 may hold anything, NaN too, and are never read. A score is None where the source
    cannot give it.

    Raises:
        ValueError: a wrong shape, a mask other than 0 and 1, turns out of order, or, at a token
            with mask 1, a value that is not finite or out of its range (rounding up to 1e-3 beyond
            the range is set to the bound); names the score, rollout and position.
    """

    lengths_R: np.ndarray  # [R] int64, response tokens of each rollout
    response_mask_N: np.ndarray  # [N] bool, True = written by the student
    vocab_size: int
    # Of the student's distribution over the full vocabulary.
    entropy_N: Annotated[_Column, Score("nats", 0.0, None, _ROLLOUT_THEN_EXACT)] = None
    # KL(student || teacher).
    reverse_kl_N: Annotated[_Column, Score("nats", 0.0, inf, _AT_TOPK_OR_EXACT)] = None
    # KL(teacher || student).
    forward_kl_N: Annotated[_Column, Score("nats", 0.0, inf, _AT_TOPK_OR_EXACT)] = None
    # Jensen-Shannon divergence.
    jsd_N: Annotated[_Column, Score("nats", 0.0, log(2.0), _AT_TOPK_OR_EXACT)] = None
    # The teacher's, of the sampled token.
    teacher_logprob_N: Annotated[_Column, Score("nats", -inf, 0.0, "every teacher")] = None
    # Of the teacher's distribution over the full vocabulary.
    teacher_entropy_N: Annotated[_Column, Score("nats", 0.0, None, _WHOLE, optional=True)] = None
    # The teacher's probability of the student's top-K.
    teacher_mass_N: Annotated[_Column, Score("probability", 0.0, 1.0, _AT_TOPK)] = None
    # Forward KL renormalised on the union of both top-Ks.
    union_forward_kl_N: Annotated[_Column, Score("nats", 0.0, inf, _OWN_TOPK)] = None
    # The student's, of the sampled token, as the rollout engine has it.
    rollout_logprob_N: Annotated[_Column, Score("nats", -inf, 0.0, _ROLLOUT)] = None
    # Within the rollout; worked out whenever it is asked for where it is not given.
    position_N: Annotated[_Column, Score("tokens", 0.0, inf, "always there")] = None
    # Number of the student's turn, int16, which never falls within a rollout. None: a turn each.
    turns_N: np.ndarray | None = None

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
        if self.position_N is not None:
            _check_shape("position", self.position_N, lengths_R)
        object.__setattr__(self, "lengths_R", lengths_R)
        object.__setattr__(self, "response_mask_N", mask_N)
        if self.turns_N is not None:
            object.__setattr__(self, "turns_N", self._checked_turns(np.asarray(self.turns_N)))
        for name, score in SCORES.items():
            values_N = getattr(self, f"{name}_N")
            if values_N is not None and name != "position":  # a whole number, and worked out here
                object.__setattr__(self, f"{name}_N", self._checked(name, score, values_N))

    def _checked(self, name: str, score: Score, values_N: np.ndarray) -> np.ndarray:
        """``values_N`` as float32, rounded into the range of ``name`` where it is not far off."""
        values_N = np.asarray(values_N, dtype=np.float32)
        _check_shape(name, values_N, self.lengths_R)
        low, high = score.low, log(self.vocab_size) if score.high is None else score.high
        # Of all tokens: numpy is four times as fast without a mask. Most batches need no more.
        least, greatest = values_N.min(initial=np.inf), values_N.max(initial=-np.inf)
        if low <= least and greatest <= high and np.isfinite((least, greatest)).all():
            return values_N
        wrong_N = ~np.isfinite(values_N)
        wrong_N |= (values_N < low - _ROUNDING) | (values_N > high + _ROUNDING)
        wrong_N &= self.response_mask_N
        if wrong_N.any():
            index = int(np.argmax(wrong_N))
            rollout = int(np.searchsorted(np.cumsum(self.lengths_R), index, side="right"))
            position = index - int(rollout_starts(self.lengths_R)[rollout])
            raise ValueError(
                f"{name} is {values_N[index]} at rollout {rollout}, position {position}; it must "
                f"be finite and in [{low:.6g}, {high:.6g}] ({score.unit}); its source: "
                f"{score.source}"
            )
        return np.clip(values_N, low, high)

    def _checked_turns(self, turns_N: np.ndarray) -> np.ndarray:
        """``turns_N`` as int16, of tokens whose turns follow one another."""
        _check_shape("turns", turns_N, self.lengths_R)
        chosen_M = np.flatnonzero(self.response_mask_N)
        turns_M = turns_N[chosen_M]
        rollouts_M = np.searchsorted(np.cumsum(self.lengths_R), chosen_M, side="right")
        falls_M = (turns_M[1:] < turns_M[:-1]) & (rollouts_M[1:] == rollouts_M[:-1])
        if falls_M.any():
            at = int(np.argmax(falls_M)) + 1
            rollout = int(rollouts_M[at])
            position = int(chosen_M[at] - rollout_starts(self.lengths_R)[rollout])
            raise ValueError(
                f"turns falls from {turns_M[at - 1]} to {turns_M[at]} at rollout {rollout}, "
                f"position {position}; turns follow one another"
            )
        return turns_N.astype(np.int16)

    def turn_lengths(self) -> np.ndarray:
        """Tokens of each turn of each rollout, [J] int64; of :meth:`student_tokens`, only theirs.

        A turn without a token is not there, save where each rollout is a turn: then as
        ``lengths_R``.
        """
        return self.lengths_R if self.turns_N is None else run_lengths(self.turns_N, self.lengths_R)

    def student_tokens(self) -> TokenScores:
        """The same rollouts with only the tokens of mask 1; positions stay as they were."""
        mask_N = self.response_mask_N
        if mask_N.all():
            return self
        chosen_M = np.flatnonzero(mask_N)
        tokens = copy(self)  # not made anew: all has been checked
        object.__setattr__(tokens, "position_N", self.get("position", "student_tokens"))
        object.__setattr__(tokens, "lengths_R", count_per_rollout(mask_N, self.lengths_R))
        for name, values in vars(tokens).items():
            if name.endswith("_N") and values is not None:
                object.__setattr__(tokens, name, values[chosen_M])
        return tokens

    def has(self, name: str) -> bool:
        """Whether the batch has the score ``name``; False too if there is no such score."""
        known = name in SCORES and getattr(self, f"{name}_N") is not None
        return known or name == "position"

    def get(self, name: str, wanted_by: str) -> np.ndarray:
        """The score ``name``, [N].

        Raises:
            MissingScoreError: it is not there; names ``wanted_by``.
        """
        if not self.has(name):
            raise MissingScoreError(name, wanted_by)
        values_N: np.ndarray | None = getattr(self, f"{name}_N")
        return positions(self.lengths_R) if values_N is None else values_N


# Every score by its name, that of the field without the letter of its axis.
SCORES: dict[str, Score] = {
    name.removesuffix("_N"): hint.__metadata__[0]
    for name, hint in get_type_hints(TokenScores, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}


def _check_shape(name: str, values_N: np.ndarray, lengths_R: np.ndarray) -> None:
    total = int(lengths_R.sum())
    if values_N.shape != (total,):
        raise ValueError(
            f"{name} has shape {values_N.shape}, but the lengths of the {len(lengths_R)} rollouts "
            f"sum to {total} tokens"
        )
