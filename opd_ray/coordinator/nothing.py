"""Steps that learn nothing, and a teacher worse than its student: said, with cause or figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from opd_ray.step_account import StepAccount
from opd_ray.tip import Selection, TipSettings, TokenScores
from opd_ray.tip.select import SelectBy, ShareOf, share_counts, share_groups

# Figures of a task by which a teacher is compared with its student.
_SHARES = ("accuracy", "mean@")


def nothing_learned(
    account: StepAccount, selection: Selection, scores: TokenScores, tip: TipSettings
) -> str | None:
    """Why a step left the student as it was; None: it did not."""
    if account.skipped:
        return f"the filter kept no token: {_nothing_kept(selection, scores, tip)}"
    if account.learning_rate == 0:
        return "the learning rate is 0"
    if account.grad_norm == 0:
        return "the gradient is zero: the student already says what its teacher says"
    return None


def _nothing_kept(selection: Selection, scores: TokenScores, tip: TipSettings) -> str:
    tokens = scores.student_tokens()
    if not tokens.lengths_R.sum():
        if not len(scores.response_mask_N):
            return "the student wrote none"
        # The first turn is always the student's: only a rollout that is left out has none of it.
        return (
            f"all {len(tokens.lengths_R)} rollouts came to a limit (rollout/ended/... says which) "
            "and are left out; raise the limit, or set environment.keep_truncated=true"
        )
    match tip.selection:
        case SelectBy.threshold:
            return f"no score of the rule {tip.rule} lies beyond tip.threshold = {tip.threshold:g}"
        case SelectBy.soft:
            return f"every score of the rule {tip.rule} is 0"
    if selection.rho == 0:
        return "tip.rho is 0"
    most = {share_of: int(share_groups(tokens, share_of).max()) for share_of in ShareOf}
    # From turns to the batch, groups grow: the first that gives a token is the nearest remedy.
    enough = [of for of, size in most.items() if share_counts(np.array([size]), selection.rho)[0]]
    if tip.share_of not in enough:
        group = "response" if tip.share_of == ShareOf.rollout else tip.share_of.value
        return (
            f"tip.rho = {selection.rho:g} of a {group} of at most {most[tip.share_of]} tokens is "
            f"less than one token; raise it"
            f"{f', or set tip.share_of to {enough[0].value}' if enough else ''}"
        )
    return f"the rule {tip.rule} leaves out every one"


def steps_note(rows: Sequence[Mapping[str, float]]) -> str | None:
    """How many steps of a run learned nothing, from its metrics; None: all did."""
    steps = [row for row in rows if "train/loss" in row]
    skipped = sum(row.get("train/skipped", 0) > 0 for row in steps)
    idle = sum(
        0 in (row.get("train/grad_norm"), row.get("train/learning_rate"))
        for row in steps
        if not row.get("train/skipped")
    )
    parts = [(skipped, "in which the filter kept no token"), (idle, "without a gradient or rate")]
    found = [f"{count} {why}" for count, why in parts if count]
    if not found:
        return None
    return f"{skipped + idle} of {len(steps)} steps learned nothing: {', '.join(found)}"


def teacher_notes(rows: Sequence[Mapping[str, float]], teacher: Mapping[str, float]) -> list[str]:
    """A line for every held-out figure in which the teacher is worse than its student was.

    Args:
        rows: of the metrics; the first and the last with figures are before and after.
        teacher: its figures, by the same names; none where it was not asked.
    """
    evaluations = [row for row in rows if any(name.startswith("eval/") for name in row)]
    if not evaluations:
        return []
    before, after = evaluations[0], evaluations[-1]
    found = []
    for name, value in teacher.items():
        share = name.rpartition("/")[2]
        if not share.startswith(_SHARES) or share.endswith("_se") or name not in before:
            continue
        if value >= before[name]:
            continue
        gap = before[name] - value
        error = float(np.hypot(_error(before, name), _error(teacher, name)))
        within = "" if gap > 2 * error else "; the difference is within two standard errors"
        found.append(
            f"the teacher is worse than the student was before the run on "
            f"{name.removeprefix('eval/')}: {_figure(teacher, name)} against "
            f"{_figure(before, name)}, {_figure(after, name)} after it{within}"
        )
    return found


def _error(figures: Mapping[str, float], name: str) -> float:
    """The standard error of a figure; 0 where there is none, as of a single problem."""
    error = figures.get(f"{name}_se", 0.0)
    return 0.0 if math.isnan(error) else error


def _figure(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return "unknown"
    error = _error(figures, name)
    return f"{figures[name]:.4f}" + (f" ± {error:.4f}" if error else "")
