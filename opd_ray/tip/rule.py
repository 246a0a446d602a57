"""What a selection rule is: a function from scores to a number a token, and a declaration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import log

import numpy as np

from opd_ray.tip.normalise import Normalisation, NormaliseOver, normalise
from opd_ray.tip.running_quantiles import RunningQuantiles
from opd_ray.tip.scores import SCORES, TokenScores
from opd_ray.tip.settings import TipSettings


class Keeps(StrEnum):
    """Which tokens a rule prefers."""

    top = "top"  # the greatest scores
    bottom = "bottom"  # the least
    sampled = "sampled"  # draws in proportion to the scores, without replacement
    all = "all"  # every token


@dataclass(frozen=True)
class Rule:
    """A selection rule. Make one with the decorator :func:`selection_rule`."""

    name: str
    # -> [M], one finite number a token; -inf leaves a token out, whatever is kept
    score: Callable[[RuleInputs], np.ndarray]
    needs: tuple[str, ...]  # names of scores; "divergence" is the one chosen in the settings
    keeps: str  # one of Keeps

    def __post_init__(self) -> None:
        given: object = self.needs
        if isinstance(given, str):
            raise ValueError(
                f"rule {self.name}: needs={given!r} is one text: write a tuple of names, "
                f"({given!r},)"
            )
        known = (*SCORES, "divergence")
        for need in self.needs:
            if need not in known:
                raise ValueError(f"rule {self.name}: no score is called {need!r}; known: {known}")
        if self.keeps not in list(Keeps):
            raise ValueError(
                f"rule {self.name}: keeps={self.keeps!r} must be one of {', '.join(Keeps)}"
            )


def selection_rule(
    *, needs: tuple[str, ...], keeps: str = Keeps.top
) -> Callable[[Callable[[RuleInputs], np.ndarray]], Rule]:
    """Turn a function of :class:`RuleInputs` into a :class:`Rule`; arguments as its fields."""

    def declare(score: Callable[[RuleInputs], np.ndarray]) -> Rule:
        return Rule(name=score.__name__, score=score, needs=needs, keeps=keeps)

    return declare


class RuleInputs:
    """The scores of a batch as rules see them: M tokens that the student wrote, raw or normalised.

    Normalised scores are worked out once and shared by all rules of a step. All arrays are
    read-only, as others read them too: a rule that wants to change one copies it.
    """

    def __init__(
        self, scores: TokenScores, settings: TipSettings, earlier: RunningQuantiles | None = None
    ) -> None:
        """``scores`` must hold tokens of mask 1 only (:meth:`TokenScores.student_tokens`)."""
        self._scores = scores
        self._settings = settings
        self._earlier = earlier
        self._normalised: dict[tuple[str, str], np.ndarray] = {}
        self.lengths_R = _read_only(scores.lengths_R)
        self.alpha = settings.alpha  # exponent of the entropy in the rule "product"
        self.gamma = settings.gamma  # exponent of the divergence in it

    def __len__(self) -> int:
        return int(self.lengths_R.sum())

    @cached_property
    def turns_M(self) -> np.ndarray:
        """The number of each token's turn within its rollout, from 0, [M] int16."""
        turns_M = self._scores.turns_N
        return _read_only(np.zeros(len(self), dtype=np.int16) if turns_M is None else turns_M)

    @cached_property
    def lengths_J(self) -> np.ndarray:
        """Tokens of each turn of each rollout, side by side as ``lengths_R`` has the rollouts."""
        return _read_only(self._scores.turn_lengths())

    def raw(self, name: str) -> np.ndarray:
        """A score as it is, [M]; nats, save "entropy", which is h = H / ln V in [0, 1].

        "divergence" is the divergence chosen in the settings.

        Raises:
            MissingScoreError: the batch does not have the score.
        """
        score = self._settings.score_named(name)
        values_M = self._scores.get(score, wanted_by=f"rule={self._settings.rule}")
        if name == "entropy":
            values_M = values_M / np.float32(log(self._scores.vocab_size))
        return _read_only(values_M)

    def normalised(self, name: str, method: str | None = None) -> np.ndarray:
        """A score in [0, 1], [M] float32, over the scope of the settings.

        ``method`` None takes that of the settings, with their quantile clip: ``h_clip`` for the
        entropy, ``divergence_clip`` for all else.
        """
        name = self._settings.score_named(name)
        method = Normalisation(method or self._settings.normalisation)
        if (name, method) not in self._normalised:
            clip = self._settings.h_clip if name == "entropy" else self._settings.divergence_clip
            scope = self._settings.normalise_over
            values_M = normalise(
                self.raw(name),
                self.lengths_J if scope == NormaliseOver.turn else self.lengths_R,
                method=method,
                scope=scope,
                clip=clip,
                earlier=self._earlier,
                name=name,
            )
            self._normalised[name, method] = _read_only(values_M)
        return self._normalised[name, method]

    def normalised_names(self) -> set[str]:
        """The scores of which a normalised form has been asked for."""
        return {name for name, _ in self._normalised}


def _read_only(values: np.ndarray) -> np.ndarray:
    """The same numbers, which whoever is given them cannot change."""
    view = values.view()
    view.flags.writeable = False
    return view
