"""The TIP filter: from the scores of a batch to a weight for each token, with an account of it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from opd_ray.errors import ConfigError
from opd_ray.tip.normalise import NormaliseOver
from opd_ray.tip.quadrants import QuadrantReport, jaccard, quadrant_report
from opd_ray.tip.ragged import count_per_rollout
from opd_ray.tip.registry import find_rule, rule_names
from opd_ray.tip.rule import Keeps, Rule, RuleInputs
from opd_ray.tip.running_quantiles import RunningQuantiles
from opd_ray.tip.sampling import drawn_keys
from opd_ray.tip.scores import SCORES, TokenScores
from opd_ray.tip.select import SelectBy, ShareOf, keep_greatest, share_counts, share_groups
from opd_ray.tip.settings import TipSettings
from opd_ray.user_code import users_code


@dataclass(frozen=True)
class Selection:
    """What the filter decided for one batch."""

    weights_N: np.ndarray  # [N] float32, 0 = dropped; 1 = kept, unless the selection is soft
    rho: float  # the share asked for at this step
    kept_fraction: float  # tokens with a weight above 0, of the tokens the student wrote
    quadrants: QuadrantReport | None = None  # None: entropy or divergence is missing, or no tokens
    overlaps: dict[str, float] = field(default_factory=dict)  # rule -> Jaccard overlap, in [0, 1]

    def as_metrics(self) -> dict[str, float]:
        """Flat figures for a metrics log: ``rho``, ``Q1/share``, ``overlap/RULE`` and so on."""
        metrics = {"rho": self.rho, "kept_fraction": self.kept_fraction}
        if self.quadrants is not None:
            metrics |= self.quadrants.as_metrics()
        return metrics | {f"overlap/{name}": value for name, value in self.overlaps.items()}


class TipFilter:
    """Applies one rule, step after step. Its only state is that of normalising over the stream."""

    def __init__(self, settings: TipSettings, loss_score: str = "reverse_kl") -> None:
        """``loss_score`` names the run's loss, whose score gives the quadrants' ``mean_loss``.

        That is None where the loss is no score a token, or none of the batch at hand.

        Raises:
            ValueError: there is no such rule, or it does not go with ``selection``.
        """
        self.settings = settings
        self.rule = find_rule(settings.rule)
        self._loss_score = loss_score
        self._running = RunningQuantiles(settings.stream_decay)
        if settings.selection == SelectBy.threshold and self.rule.keeps == Keeps.sampled:
            raise ValueError(
                f"tip.selection=threshold: rule {self.rule.name} samples, so no threshold applies; "
                "use selection=top_share, or a rule that ranks"
            )
        if settings.selection == SelectBy.soft and self.rule.keeps == Keeps.bottom:
            raise ValueError(
                f"tip.selection=soft: rule {self.rule.name} keeps the least scores, which are no "
                "weights; use selection=top_share or threshold"
            )

    def select(self, scores: TokenScores, seeds_R: np.ndarray, step: int) -> Selection:
        """Decide on every token of a batch.

        Args:
            scores: of N tokens in R rollouts.
            seeds_R: an integer seed for each rollout, from which sampling rules draw; equal seeds
                give equal draws, whichever batch the rollout is in.
            step: from 0; sets rho by its schedule.

        Raises:
            MissingScoreError: the rule needs a score that is None.
            ConfigError: it gives NaN, infinity or (as weights) a number below 0; -inf, which leaves
                a token out, is none of these.
            UserCodeError: what a rule of the user's raises, with its file and line.
            ValueError: ``seeds_R`` has the wrong length.
        """
        settings = self.settings
        rho = settings.rho_at(step)
        tokens, inputs, weights_M = self._choice(scores, seeds_R, step)
        weights_N = _of_all(scores, weights_M)
        if len(weights_M) == 0:
            return Selection(weights_N, rho, kept_fraction=0.0)
        kept_M = weights_M > 0
        selection = Selection(
            weights_N,
            rho,
            kept_fraction=float(np.mean(kept_M)),
            quadrants=self._quadrants(tokens, inputs, kept_M),
            overlaps=self._overlaps(tokens, inputs, seeds_R, kept_M) if settings.overlap else {},
        )
        if settings.normalise_over == NormaliseOver.stream:
            for name in inputs.normalised_names():
                self._running.observe(name, inputs.raw(name))
        return selection

    def weights(self, scores: TokenScores, seeds_R: np.ndarray, step: int) -> np.ndarray | None:
        """The weights that :meth:`select` gives, [N], without its account; nothing is remembered.

        None with normalise_over=stream where no earlier step has shown a score that the rule wants
        normalised: it is the step itself that this goes by then, and it may not be whole.

        Args and raises: as there.
        """
        _, inputs, weights_M = self._choice(scores, seeds_R, step)
        if self.settings.normalise_over == NormaliseOver.stream and not all(
            self._running.knows(name) for name in inputs.normalised_names()
        ):
            return None
        return _of_all(scores, weights_M)

    def seen(self, scores: TokenScores) -> tuple[TokenScores, RuleInputs]:
        """The tokens that the student wrote, and what rules see of them, as in the last
        :meth:`select`."""
        tokens = scores.student_tokens()
        streaming = self.settings.normalise_over == NormaliseOver.stream
        return tokens, RuleInputs(tokens, self.settings, self._running if streaming else None)

    @property
    def reads(self) -> frozenset[str]:
        """Names of the scores that are looked at where a batch has them."""
        settings = self.settings
        if ":" in self.rule.name:  # a rule of the user's may look at any
            return frozenset(SCORES)
        rules = rule_names() if settings.overlap else [self.rule.name]
        needs = {settings.score_named(need) for name in rules for need in find_rule(name).needs}
        return frozenset({*needs, "entropy", settings.divergence.value, self._loss_score})

    @property
    def decides_by_rollout(self) -> bool:
        """Whether a rollout's weights do not depend on the others of its step.

        Of a rule of the user's, as far as settings tell.
        """
        settings = self.settings
        if settings.share_of == ShareOf.batch and settings.selection == SelectBy.top_share:
            return False
        return settings.normalise_over != NormaliseOver.batch

    def _choice(
        self, scores: TokenScores, seeds_R: np.ndarray, step: int
    ) -> tuple[TokenScores, RuleInputs, np.ndarray]:
        """The M tokens that the student wrote, what the rule sees of them, and weights [M]."""
        settings = self.settings
        if np.shape(seeds_R) != scores.lengths_R.shape:
            raise ValueError(
                f"seeds_R has shape {np.shape(seeds_R)} for {len(scores.lengths_R)} rollouts; "
                "give one seed for each"
            )
        tokens, inputs = self.seen(scores)
        streaming = settings.normalise_over == NormaliseOver.stream
        if len(tokens.response_mask_N) == 0:  # no teacher was asked, there are no scores of its
            return tokens, inputs, np.zeros(0, dtype=np.float32)
        for need in self.rule.needs:
            scores.get(settings.score_named(need), wanted_by=f"tip.rule={self.rule.name}")
        if streaming:
            self._running.begin_step(step)
        return tokens, inputs, self._weights(tokens, inputs, seeds_R, settings.rho_at(step))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold, fit for JSON; figures only if normalise_over=stream."""
        return self._running.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._running.load_state_dict(state)

    def _weights(
        self,
        tokens: TokenScores,
        inputs: RuleInputs,
        seeds_R: np.ndarray,
        rho: float,
    ) -> np.ndarray:
        """The weight of every student token, [M] float32."""
        settings = self.settings
        scores_M = rule_scores(self.rule, inputs, tokens)
        allowed_M = scores_M > -np.inf
        if self.rule.keeps == Keeps.all:
            return allowed_M.astype(np.float32)
        if settings.selection == SelectBy.soft:
            if np.any(scores_M[allowed_M] < 0):
                raise ConfigError(
                    f"rule {self.rule.name} gives {scores_M[allowed_M].min()}; soft weights must "
                    "not be negative: use selection=top_share, or shift the score"
                )
            return np.where(allowed_M, scores_M, np.float32(0))
        if settings.selection == SelectBy.threshold:
            limit = np.float32(settings.threshold)
            kept_M = scores_M <= limit if self.rule.keeps == Keeps.bottom else scores_M >= limit
            return (kept_M & allowed_M).astype(np.float32)
        groups = share_groups(tokens, settings.share_of)
        counts = share_counts(groups, rho)
        chosen_M = _chosen(self.rule, scores_M, tokens, seeds_R, groups, counts)
        return chosen_M.astype(np.float32)

    def _quadrants(
        self, tokens: TokenScores, inputs: RuleInputs, kept_M: np.ndarray
    ) -> QuadrantReport | None:
        settings = self.settings
        if not (tokens.has("entropy") and tokens.has(settings.divergence)):
            return None
        return quadrant_report(
            inputs.normalised("entropy"),
            inputs.normalised("divergence"),
            inputs.raw("entropy"),
            inputs.raw("divergence"),
            kept_M,
            cut_kind=settings.quadrant_cut,
            h_cut=settings.quadrant_h_cut,
            divergence_cut=settings.quadrant_divergence_cut,
            loss_M=inputs.raw(self._loss_score) if tokens.has(self._loss_score) else None,
        )

    def _overlaps(
        self,
        tokens: TokenScores,
        inputs: RuleInputs,
        seeds_R: np.ndarray,
        kept_M: np.ndarray,
    ) -> dict[str, float]:
        """Overlap with each other rule whose scores are there, keeping as many tokens a group.

        Equal numbers keep the overlap from telling of size what it should tell of choice.
        """
        groups = share_groups(tokens, self.settings.share_of)
        counts = count_per_rollout(kept_M, groups)
        overlaps = {}
        for name in rule_names():
            rule = find_rule(name)
            needs = [self.settings.score_named(need) for need in rule.needs]
            if name == self.rule.name or not all(tokens.has(need) for need in needs):
                continue
            if rule.keeps == Keeps.all:
                other_M = np.ones(len(inputs), dtype=np.bool_)
            else:
                scores_M = rule_scores(rule, inputs, tokens)
                other_M = _chosen(rule, scores_M, tokens, seeds_R, groups, counts)
            overlaps[name] = jaccard(kept_M, other_M)
        return overlaps


def _of_all(scores: TokenScores, weights_M: np.ndarray) -> np.ndarray:
    """The weights of the tokens that the student wrote, and 0 for all others, [N] float32."""
    if len(weights_M) == len(scores.response_mask_N):
        return weights_M
    weights_N = np.zeros(len(scores.response_mask_N), dtype=np.float32)
    weights_N[scores.response_mask_N] = weights_M
    return weights_N


def _chosen(
    rule: Rule,
    scores_M: np.ndarray,
    tokens: TokenScores,
    seeds_R: np.ndarray,
    groups: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """The ``counts`` tokens of each group that ``rule`` prefers, [M] bool.

    Tokens of score -inf are never among them: where too few others are left, all those are.
    """
    preferred_M = preferences(rule, scores_M, tokens, seeds_R)
    allowed_M = scores_M > -np.inf
    if not allowed_M.all():
        counts = np.minimum(counts, count_per_rollout(allowed_M, groups))
    return keep_greatest(preferred_M, groups, counts)


def preferences(
    rule: Rule, scores_M: np.ndarray, tokens: TokenScores, seeds_R: np.ndarray
) -> np.ndarray:
    """What ``rule`` keeps the greatest of, [M] float32; -inf of those that it leaves out."""
    allowed_M = scores_M > -np.inf
    all_allowed = bool(allowed_M.all())
    if rule.keeps == Keeps.sampled:
        # Salted by name, so that two rules do not agree by drawing the same numbers.
        scores_M = drawn_keys(
            scores_M if all_allowed else np.where(allowed_M, scores_M, np.float32(0)),
            seeds_R,
            tokens.lengths_R,
            tokens.get("position", wanted_by=rule.name),
            salt=crc32(rule.name.encode()),
        )
    elif rule.keeps == Keeps.bottom:
        scores_M = -scores_M
    if not all_allowed:
        scores_M = np.where(allowed_M, scores_M, -np.inf)
    return scores_M


def rule_scores(rule: Rule, inputs: RuleInputs, tokens: TokenScores) -> np.ndarray:
    """What ``rule`` says of every token, [M] float32; -inf of those that it leaves out.

    Raises:
        ConfigError: numbers of another shape or type, or NaN or infinity among them.
        UserCodeError: what a rule of the user's raises, with its file and line.
    """
    with users_code(f"tip.rule = {rule.name!r}") if ":" in rule.name else nullcontext():
        given_M = np.asarray(rule.score(inputs))
    if given_M.shape != (len(inputs),):
        raise ConfigError(
            f"rule {rule.name} gives scores of shape {given_M.shape} for {len(inputs)} tokens"
        )
    if given_M.dtype.kind not in "biuf":
        raise ConfigError(
            f"rule {rule.name} gives scores of type {given_M.dtype}; give real numbers"
        )
    with np.errstate(over="ignore"):
        scores_M = given_M.astype(np.float32, copy=False)
    finite_M = np.isfinite(scores_M)
    # A float64 below float32's range is no -inf of the rule's.
    wrong_M = ~finite_M if finite_M.all() else ~finite_M & (given_M != -np.inf)
    if rule.keeps == Keeps.sampled:
        wrong_M |= (scores_M < 0) & finite_M
    if wrong_M.any():
        index = int(np.argmax(wrong_M))
        rollout = int(np.searchsorted(np.cumsum(tokens.lengths_R), index, side="right"))
        position = int(tokens.get("position", wanted_by=rule.name)[index])
        wanted = (
            "at least 0, or -inf" if rule.keeps == Keeps.sampled else "finite in float32, or -inf"
        )
        raise ConfigError(
            f"rule {rule.name} gives a score of {given_M[index]} at rollout {rollout} of the "
            f"batch, position {position}; scores must be {wanted} to leave a token out"
        )
    return scores_M
