"""``opd-ray check-rule``: does a selection rule keep what a run relies on?"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

import numpy as np

from opd_ray.errors import OpdError
from opd_ray.seeds import derive_seed
from opd_ray.tip import Rule, RuleInputs, TokenScores, find_rule
from opd_ray.tip.filter import TipFilter, rule_scores
from opd_ray.tip.ragged import positions
from opd_ray.tip.scores import SCORES
from opd_ray.tip.settings import TipSettings

VOCABULARY = 1000
# Response tokens of each rollout of the batch that rules are tried on; some are a tool's.
LENGTHS = (40, 1, 0, 17, 1, 64, 5)
TURN = 8  # tokens of a turn
TOLERANCE = 1e-4  # between two answers to the same scores, relative; normalising rounds


@dataclass
class RuleReport:
    """What was found out about a rule."""

    rule: Rule
    needs: list[str] = field(default_factory=list)  # a score and what gives it, a line each
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Watched(RuleInputs):
    """Remembers which scores are read."""

    def __init__(self, scores: TokenScores, settings: TipSettings) -> None:
        super().__init__(scores, settings)
        self.read: set[str] = set()

    def raw(self, name: str) -> np.ndarray:
        self.read.add(name)
        return super().raw(name)


def check_rule(settings: TipSettings) -> RuleReport:
    """Try the rule ``settings`` name on random scores, as the other settings would use it.

    Raises:
        OpdError: there is no such rule, or it does not go with ``selection``.
        ValueError: the same, of a rule's declaration.
    """
    rule = TipFilter(settings).rule
    report = RuleReport(find_rule(settings.rule))
    names = [settings.score_named(need) for need in rule.needs]
    report.needs = [f"{name} ({_unit(name)}): {SCORES[name].source}" for name in names]
    probe = _Probe(rule, settings, frozenset(names))
    batch = probe.random(LENGTHS)
    scores_M = probe.scores(batch)
    if scores_M is not None:
        _note_reads(report, probe, settings)
        again_M = probe.scores(batch)
        if again_M is not None and not _alike(scores_M, again_M):
            probe.found.append(
                "gives other scores when it is asked twice: let them depend on the scores alone "
                "(draws are made by keeps='sampled')"
            )
        _try_orders(probe, batch, scores_M)
        excluded = int(np.sum(scores_M == -np.inf))
        if excluded:
            report.notes.append(f"left out {excluded} of {len(scores_M)} tokens (-inf)")
        if settings.selection == "soft" and np.any(scores_M[scores_M > -np.inf] < 0):
            probe.found.append(
                f"gives {scores_M[scores_M > -np.inf].min():g}; with tip.selection=soft scores are "
                "weights: none may be below 0"
            )
    for lengths, what in (((1,), "one token"), ((0, 1, 0), "one token between empty rollouts")):
        probe.scores(probe.random(lengths), f" of a batch of {what}")
    probe.scores(probe.equal(LENGTHS), " where all scores are equal")
    report.violations = list(dict.fromkeys(probe.found))
    return report


def _unit(name: str) -> str:
    unit = SCORES[name].unit
    return f"{unit}; read as H / ln V" if name == "entropy" else unit


def _note_reads(report: RuleReport, probe: _Probe, settings: TipSettings) -> None:
    read = {settings.score_named(name) for name in probe.read}
    unread = [need for need in report.rule.needs if settings.score_named(need) not in read]
    if unread:
        report.notes.append(
            f"declares that it needs {', '.join(unread)}, which it did not read: what is declared "
            "a run must provide"
        )


def _try_orders(probe: _Probe, batch: TokenScores, scores_M: np.ndarray) -> None:
    """Rollouts come in the order in which they end, which differs from run to run."""
    order_R = np.random.default_rng(1).permutation(len(batch.lengths_R))
    shuffled_M = probe.scores(_in_order(batch, order_R))
    if shuffled_M is None:
        return
    rows_M = _rows(batch.student_tokens().lengths_R, order_R)
    if not _alike(scores_M[rows_M], shuffled_M):
        probe.found.append(
            "gives a token other scores when the rollouts stand in another order: they stand in "
            "the order in which they ended, which is never the same"
        )


class _Probe:
    """Batches for one rule, and what was found when it scored them."""

    def __init__(self, rule: Rule, settings: TipSettings, names: frozenset[str]) -> None:
        self._rule, self._settings, self._names = rule, settings, names
        self.found: list[str] = []
        self.read: set[str] = set()

    def scores(self, batch: TokenScores, where: str = "") -> np.ndarray | None:
        """The rule's scores, [M] float32; None where it gives none that are fit for use."""
        tokens = batch.student_tokens()
        inputs = _Watched(tokens, self._settings)
        try:
            scores_M = rule_scores(self._rule, inputs, tokens)
        except OpdError as error:
            remedy = ""
            if "read-only" in str(error):
                remedy = "; it writes into arrays that others read too: take .copy() of them first"
            self.found.append(f"fails{where}: {error}{remedy}")
            return None
        self.read |= inputs.read
        return scores_M

    def random(self, lengths: tuple[int, ...]) -> TokenScores:
        """Scores over all of their ranges, the same at every call."""
        rng = np.random.default_rng(derive_seed(0, "check-rule", *map(str, lengths)))
        total = sum(lengths)
        columns = {}
        for name in self._names - {"position"}:
            low, high = _range(name)
            columns[f"{name}_N"] = rng.uniform(low, high, total).astype(np.float32)
        mask_N = rng.random(total) > 0.2
        mask_N[: total if total < 3 else 1] = True
        turns_N = positions(np.array(lengths)) // TURN
        return TokenScores(np.array(lengths), mask_N, VOCABULARY, turns_N=turns_N, **columns)

    def equal(self, lengths: tuple[int, ...]) -> TokenScores:
        """All at the end of their ranges that lies at 0."""
        total = sum(lengths)
        columns = {f"{n}_N": np.zeros(total, np.float32) for n in self._names - {"position"}}
        return TokenScores(np.array(lengths), np.ones(total, np.bool_), VOCABULARY, **columns)


def _range(name: str) -> tuple[float, float]:
    """Both ends of a score's values, cut at a few nats where they have none."""
    score = SCORES[name]
    high = log(VOCABULARY) if score.high is None else score.high
    return max(score.low, -12.0), min(high, 12.0)


def _in_order(batch: TokenScores, order_R: np.ndarray) -> TokenScores:
    """The same rollouts in another order."""
    rows_N = _rows(batch.lengths_R, order_R)
    columns = {
        name: values[rows_N]
        for name, values in vars(batch).items()
        if name.endswith("_N") and values is not None
    }
    return TokenScores(batch.lengths_R[order_R], vocab_size=batch.vocab_size, **columns)


def _rows(lengths_R: np.ndarray, order_R: np.ndarray) -> np.ndarray:
    """Of flat rows of rollouts, the numbers of the rows as they stand in another order."""
    rows = np.split(np.arange(lengths_R.sum()), np.cumsum(lengths_R)[:-1])
    return np.concatenate([rows[r] for r in order_R])


def _alike(one_M: np.ndarray, other_M: np.ndarray) -> bool:
    finite_M = np.isfinite(one_M)
    return bool(
        np.array_equal(finite_M, np.isfinite(other_M))
        and np.allclose(one_M[finite_M], other_M[finite_M], rtol=TOLERANCE, atol=TOLERANCE)
    )
