"""A step from close by: the figures of its batch that do not grow with it, and a few rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from opd_ray.config.schema import ReportSettings
from opd_ray.coordinator.metrics import StepSnapshot
from opd_ray.coordinator.who_worked import WhoWorked
from opd_ray.data.token_texts import TokenTexts, shortened
from opd_ray.output.close_ups import RolloutView, StepView, packed
from opd_ray.tip import TipFilter, find_rule, rule_names
from opd_ray.tip.filter import preferences, rule_scores
from opd_ray.tip.ragged import rollout_starts
from opd_ray.tip.rule import Keeps
from opd_ray.tip.scores import SCORES
from opd_ray.tip.select import ShareOf, share_counts
from opd_ray.types import Likeliest

# Points of the scatter plot, buckets of positions, tokens in the lists of each kind, turns.
_POINTS, _BUCKETS, _OFTEN, _TURNS = 1500, 24, 20, 32


class StepTokens:
    """One step's tokens that the student wrote, as rules see them."""

    def __init__(
        self, snapshot: StepSnapshot, tip: TipFilter, seeds_R: np.ndarray, texts: TokenTexts
    ) -> None:
        self._snapshot, self._tip, self._seeds_R, self._texts = snapshot, tip, seeds_R, texts
        scores = snapshot.scores
        self.tokens, self.inputs = tip.seen(scores)
        self.ids_M = np.concatenate([one.rollout.response_ids for one in snapshot.scored])[
            scores.response_mask_N
        ]
        self.weights_M = snapshot.selection.weights_N[scores.response_mask_N]
        self.starts_R = rollout_starts(self.tokens.lengths_R)

    def view(self, step: int, worked: WhoWorked) -> StepView:
        """The step as a whole."""
        settings, kept_M = self._tip.settings, self.weights_M > 0
        quadrants = self._snapshot.selection.quadrants
        return StepView(
            tip={**_plain(asdict(settings)), "rho": self._snapshot.selection.rho},
            keeps=str(self._tip.rule.keeps),
            vocab_size=self.tokens.vocab_size,
            rollouts=len(self.tokens.lengths_R),
            tokens=len(self.ids_M),
            kept=int(kept_M.sum()),
            cuts=[quadrants.h_cut, quadrants.divergence_cut] if quadrants else None,
            scatter=self._scatter(kept_M),
            by_position=self._by_position(kept_M),
            by_turn=self._by_turn(kept_M),
            often_kept=self._often(kept_M),
            often_dropped=self._often(~kept_M),
            edges=self._edges(),
            seconds=round(worked.end - worked.begin, 6),
            spans=worked.shown_spans(),
            lanes=worked.shown_lanes(),
            written=sorted(round(at - worked.begin, 6) for at in worked.written),
        )

    def rollout(self, index: int, settings: ReportSettings) -> RolloutView:
        """One rollout, as far as it is kept."""
        one = self._snapshot.scored[index]
        rollout = one.rollout
        shown = slice(0, settings.tokens)
        mask = rollout.response_mask[shown]
        count = int(np.count_nonzero(mask))
        first = int(self.starts_R[index])
        those = slice(first, first + count)
        quadrants = self._snapshot.selection.quadrants
        prompt, left_out = shortened(self._texts.of(rollout.prompt_ids))
        likeliest = _likeliest(one.scores.likeliest, count)
        ids = np.concatenate(
            [rollout.response_ids[shown], *(found[0] for found in likeliest.values())]
        )
        return RolloutView(
            rollout_id=rollout.rollout_id,
            prompt_id=rollout.prompt_id,
            sample=rollout.sample,
            source=rollout.source,
            prompt=prompt,
            prompt_left_out=left_out,
            finish_reason=rollout.finish_reason,
            weights_version=rollout.weights_version,
            tokens=len(rollout.response_ids),
            written=rollout.written_tokens,
            seed=str(self._seeds_R[index]),
            first=first,
            texts={str(i): self._texts.piece(i) for i in np.unique(ids).tolist() if i >= 0},
            ids=packed(rollout.response_ids[shown], "<i4"),
            mask=packed(mask, "<u1"),
            turns=None if rollout.turns is None else packed(rollout.turns[shown], "<i2"),
            weights=packed(self.weights_M[those], "<f4"),
            quadrants=packed(quadrants.index_M[those], "<u1") if quadrants else None,
            columns={name: packed(values[those], "<f4") for name, values in self._columns.items()},
            likeliest={
                name: [packed(ids_nk, "<i4"), packed(logprobs_nk, "<f4")]
                for name, (ids_nk, logprobs_nk) in likeliest.items()
            },
        )

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        """What the page colours by, shows and chooses from, [M] each."""
        tokens, inputs, settings = self.tokens, self.inputs, self._tip.settings
        names = [name for name in SCORES if tokens.has(name) and name != "position"]
        found = {name: tokens.get(name, "the report") for name in names}
        if tokens.has("entropy"):
            found["normalised_entropy"] = inputs.normalised("entropy")
        if tokens.has(settings.divergence):
            found["normalised_divergence"] = inputs.normalised("divergence")
        for name in ("union_forward_kl", "teacher_mass"):
            if tokens.has("union_forward_kl") and tokens.has(name):
                found[f"between_{name}"] = inputs.normalised(name, method="q05_q95")
        own = rule_scores(self._tip.rule, inputs, tokens)
        return {**found, "score": own}

    def _scatter(self, kept_M: np.ndarray) -> dict[str, str]:
        quadrants = self._snapshot.selection.quadrants
        if quadrants is None:
            return {}
        at = np.linspace(0, len(kept_M) - 1, min(len(kept_M), _POINTS)).astype(int)
        return {
            "h": packed(self.inputs.normalised("entropy")[at], "<f4"),
            "divergence": packed(self.inputs.normalised("divergence")[at], "<f4"),
            "quadrant": packed(quadrants.index_M[at], "<u1"),
            "kept": packed(kept_M[at], "<u1"),
        }

    def _by_position(self, kept_M: np.ndarray) -> dict[str, list[float]]:
        if not len(kept_M):
            return {}
        position_M = self.tokens.get("position", "the report")
        width = max(1, -(-(int(position_M.max()) + 1) // _BUCKETS))
        return {**self._means(position_M // width, kept_M), "width": [width]}

    def _by_turn(self, kept_M: np.ndarray) -> dict[str, list[float]]:
        if self.tokens.turns_N is None or not len(kept_M):
            return {}
        return self._means(np.minimum(self.inputs.turns_M, _TURNS - 1).astype(np.int64), kept_M)

    def _means(self, group_M: np.ndarray, kept_M: np.ndarray) -> dict[str, list[float]]:
        """Count and means of the tokens of each group, from 0 on; 0 of an empty one."""
        count = np.bincount(group_M)
        columns = {"kept": kept_M.astype(np.float64)}
        for name in ("entropy", self._tip.settings.divergence.value):
            if self.tokens.has(name):
                columns["entropy" if name == "entropy" else "divergence"] = self.tokens.get(
                    name, "the report"
                )
        means = {
            name: _short(np.bincount(group_M, weights=values) / np.maximum(count, 1))
            for name, values in columns.items()
        }
        return {"tokens": count.tolist(), **means}

    def _often(self, flags_M: np.ndarray) -> list[list[Any]]:
        """[text, how often flagged, how often written] of the tokens that are most often."""
        if not len(flags_M):
            return []
        ids, inverse_M = np.unique(self.ids_M, return_inverse=True)
        written = np.bincount(inverse_M)
        flagged = np.bincount(inverse_M, weights=flags_M).astype(int)
        first = np.argsort(-flagged, kind="stable")[:_OFTEN]
        return [
            [self._texts.piece(int(ids[i])), int(flagged[i]), int(written[i])]
            for i in first
            if flagged[i]
        ]

    def _edges(self) -> dict[str, list[str]]:
        """Of every rule that the scores allow, where the share of the batch ends."""
        if self._tip.settings.share_of != ShareOf.batch or not len(self.ids_M):
            return {}
        found = {}
        for name in rule_names():
            rule = find_rule(name)
            needs = [self._tip.settings.score_named(need) for need in rule.needs]
            if rule.keeps == Keeps.all or not all(self.tokens.has(need) for need in needs):
                continue
            scores_M = rule_scores(rule, self.inputs, self.tokens)
            preferred_M = preferences(rule, scores_M, self.tokens, self._seeds_R)
            found[name] = _edges_of(preferred_M)
        return found


def _edges_of(preferred_M: np.ndarray) -> list[str]:
    """The least that is kept at 0 to 100 %, and the last token of that value that is."""
    order_M = np.argsort(-preferred_M, kind="stable")
    counts = np.array([share_counts(np.array([len(order_M)]), k / 100)[0] for k in range(101)])
    last = order_M[np.maximum(counts, 1) - 1]
    least = np.where(counts > 0, preferred_M[last], np.float32(np.inf))
    return [packed(least, "<f4"), packed(np.where(counts > 0, last, -1), "<i4")]


def _likeliest(found: Likeliest | None, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The first rows of both, as far as they are there; flat."""
    if found is None:
        return {}
    return {
        name: (topk.ids[:count].ravel(), np.maximum(topk.logprobs[:count], -1e4).ravel())
        for name, topk in vars(found).items()
    }


def _short(values: np.ndarray) -> list[float]:
    """Five digits of each."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, str) else v for name, v in settings.items()}
