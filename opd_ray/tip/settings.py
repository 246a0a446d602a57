"""Settings of the TIP filter: the ``tip`` section of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from math import cos, pi

from opd_ray.on_resume import FIXED, FREE, TOLD
from opd_ray.tip.normalise import Normalisation, NormaliseOver
from opd_ray.tip.quadrants import CutKind
from opd_ray.tip.scores import SCORES
from opd_ray.tip.select import RhoSchedule, SelectBy, ShareOf
from opd_ray.types import Divergence


@dataclass(frozen=True)
class TipSettings:
    """Which tokens are trained on; choices may be given as plain strings.

    Whether there is such a rule is found where it is looked up (:func:`opd_ray.tip.find_rule`).

    Raises:
        ValueError: a bad value, naming field and remedy.
    """

    # Name of a rule (all, random, entropy_sample, entropy_topk, soft_or, q3_only, divergence_topk,
    # bottom_soft_or, teachability, product) or import path "package.module:rule" of your own.
    rule: str = field(default="soft_or", metadata=TOLD)
    # Share of the tokens that is kept, in [0, 1]; the rule "all" keeps everything whatever it is.
    rho: float = field(default=0.5, metadata=TOLD)
    # How rho moves over the steps, from rho to rho_end: constant, linear or cosine.
    rho_schedule: RhoSchedule = field(default=RhoSchedule.constant, metadata=TOLD)
    # rho at the end of a linear or cosine schedule.
    rho_end: float | None = field(default=None, metadata=TOLD)
    # Steps from rho to rho_end; afterwards it stays there.
    rho_schedule_steps: int = field(default=0, metadata=TOLD)
    # top_share keeps the share rho, threshold keeps scores from the threshold on, soft weighs every
    # token by its score and drops those of score 0.
    selection: SelectBy = field(default=SelectBy.top_share, metadata=TOLD)
    # What the share is taken of: each rollout by itself (the paper), each turn of each rollout, or
    # the whole batch. Of a turn of fewer than 1 / rho tokens none is kept.
    share_of: ShareOf = field(default=ShareOf.rollout, metadata=TOLD)
    # With selection=threshold: least score that is kept (greatest, for a rule that keeps the
    # bottom).
    threshold: float | None = field(default=None, metadata=TOLD)
    # How scores are brought to [0, 1]: min_max (the paper), q05_q95 or rank.
    normalisation: Normalisation = field(default=Normalisation.min_max, metadata=TOLD)
    # Over what: the batch (the paper), each rollout, each turn of each rollout, or stream
    # (quantiles of earlier steps).
    normalise_over: NormaliseOver = field(default=NormaliseOver.batch, metadata=FIXED)
    # With normalise_over=stream: what an earlier step still counts for, one step later.
    stream_decay: float = field(default=0.9, metadata=TOLD)
    # Quantile at which h is clipped before min-max; 1 clips nothing.
    h_clip: float = field(default=0.98, metadata=TOLD)
    # Quantile at which every other score is clipped before min-max; 1 (the paper) clips nothing.
    divergence_clip: float = field(default=1.0, metadata=TOLD)
    # The divergence of soft_or, divergence_topk and the quadrants: reverse_kl, forward_kl or jsd.
    divergence: Divergence = field(default=Divergence.reverse_kl, metadata=TOLD)
    # Exponent of the entropy in the rule "product".
    alpha: float = field(default=1.0, metadata=TOLD)
    # Exponent of the divergence in the rule "product".
    gamma: float = field(default=1.0, metadata=TOLD)
    # Quadrant cuts as a quantile of the batch's normalised scores, or as a value of them in [0, 1].
    quadrant_cut: CutKind = field(default=CutKind.quantile, metadata=TOLD)
    # Tokens whose h lies above this cut are high in h (0.5 as a quantile: the median).
    quadrant_h_cut: float = field(default=0.5, metadata=TOLD)
    # Tokens whose divergence lies above this cut are high in divergence.
    quadrant_divergence_cut: float = field(default=0.5, metadata=TOLD)
    # With run.lag=1: let the trainers compute entropy and divergences anew, under the student as it
    # is when it learns (the exact pass), instead of taking those of when the rollouts were written.
    rescore: bool = field(default=False, metadata=TOLD)
    # Report, at every step, how far the other rules would have chosen the same tokens.
    overlap: bool = field(default=True, metadata=FREE)

    def __post_init__(self) -> None:
        for key in fields(self):
            if isinstance(key.default, StrEnum):
                choice = _choice(key.name, getattr(self, key.name), type(key.default))
                object.__setattr__(self, key.name, choice)
        if self.divergence not in SCORES:
            raise ValueError(
                f"tip.divergence={self.divergence} is a loss but no score a token: choose one of "
                f"{', '.join(choice for choice in Divergence if choice in SCORES)}"
            )
        _check_share("rho", self.rho)
        _check_share("stream_decay", self.stream_decay)
        _check_share("h_clip", self.h_clip)
        _check_share("divergence_clip", self.divergence_clip)
        _check_share("quadrant_h_cut", self.quadrant_h_cut)
        _check_share("quadrant_divergence_cut", self.quadrant_divergence_cut)
        for name in ("alpha", "gamma"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"tip.{name}={getattr(self, name)} must be a number of at least 0")
        if self.rho_schedule != RhoSchedule.constant:
            if self.rho_end is None:
                raise ValueError(
                    f"tip.rho_schedule={self.rho_schedule} needs tip.rho_end, the share it ends at"
                )
            _check_share("rho_end", self.rho_end)
            if self.rho_schedule_steps < 1:
                raise ValueError(
                    f"tip.rho_schedule_steps={self.rho_schedule_steps} must be at least 1 with "
                    f"tip.rho_schedule={self.rho_schedule}"
                )
        if (self.selection == SelectBy.threshold) != (self.threshold is not None):
            raise ValueError(
                f"tip.threshold={self.threshold} with tip.selection={self.selection}: "
                "give a threshold with selection=threshold, and only then"
            )

    def score_named(self, name: str) -> str:
        """The name of a score, with "divergence" replaced by the one chosen here."""
        return self.divergence.value if name == "divergence" else name

    def rho_at(self, step: int) -> float:
        """rho at ``step``, counted from 0.

        A ``linear`` or ``cosine`` schedule leaves ``rho`` at step 0, reaches ``rho_end`` at step
        ``rho_schedule_steps`` and stays there.
        """
        if self.rho_schedule == RhoSchedule.constant or self.rho_end is None:
            return self.rho
        progress = min(step / self.rho_schedule_steps, 1.0)
        if self.rho_schedule == RhoSchedule.cosine:
            progress = (1.0 - cos(pi * progress)) / 2.0
        return self.rho + (self.rho_end - self.rho) * progress


def _choice(name: str, value: str, choices: type[StrEnum]) -> StrEnum:
    try:
        return choices(value)
    except ValueError:
        near = get_close_matches(str(value), list(map(str, choices)), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"tip.{name}={value!r} must be one of {', '.join(choices)}{hint}"
        ) from None


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"tip.{name}={value} must lie in [0, 1]")
