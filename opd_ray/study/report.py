"""The table of a study, from the accounts of its cells: means over seeds, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, median

import numpy as np

from opd_ray.study.results import CellResult

_GRID = 200_001


@dataclass(frozen=True)
class Interval:
    """A mean; ``half_width`` is NaN where one value gives no spread."""

    mean: float
    half_width: float


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and two-sided t-interval of independent values.

    Raises:
        ValueError: there are none.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one value")
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, t_quantile(level, n - 1) * error)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95
) -> Interval | None:
    """Mean of value - baseline over the seeds that both have, by t; None if there are none."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    return t_interval([values[seed] - baseline[seed] for seed in seeds], level)


@cache
def t_quantile(level: float, degrees: int) -> float:
    """t with P(|T| <= t) = ``level`` for Student's T of ``degrees`` degrees of freedom.

    With t = sqrt(degrees) tan(a), P(|T| <= t) is the integral of cos^(degrees - 1) from 0 to a over
    that from 0 to pi / 2.
    """
    angle = np.linspace(0.0, math.pi / 2, _GRID)
    density = np.cos(angle) ** (degrees - 1)
    below = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return math.sqrt(degrees) * math.tan(float(np.interp(level, below / below[-1], angle)))


ABSENT = "–"
_COLUMNS = (
    "arm",
    "seeds",
    "tokens trained on",
    "accuracy",
    "held-out KL",
    "accuracy − {baseline}",
    "KL − {baseline}",
    "accuracy − random",
    "KL − random",
    "s",
)
_LEGEND = """\
Mean ± half a 95 % t-interval over the seeds. Accuracy: greedy, `{accuracy}`. Held-out KL: exact
KL(teacher || student) in nats on fresh student responses to held-out prompts. "− {baseline}" and
"− random" are differences paired by seed: to {the_baseline}, and to the arm of the rule
`random` that keeps the same share. Tokens are the mean over the seeds, all of them of {tokens:,.0f}
written. s: wall time of the training steps of a cell, median over the seeds.
"""


@dataclass(frozen=True)
class ArmFigures:
    """What the seeds of one arm say."""

    arm: str
    rule: str
    rho: float
    results: dict[int, CellResult]  # by seed

    def by_seed(self, name: str) -> dict[int, float]:
        """A figure of the last evaluation."""
        return {seed: result.final[name] for seed, result in self.results.items()}


def arms_of(results: Sequence[CellResult]) -> list[ArmFigures]:
    """Results by arm, in the order in which the arms first appear."""
    arms: dict[str, ArmFigures] = {}
    for result in results:
        arm = arms.setdefault(result.arm, ArmFigures(result.arm, result.rule, result.rho, {}))
        arm.results[result.seed] = result
    return list(arms.values())


def results_table(results: Sequence[CellResult], accuracy: str, baseline: str | None = None) -> str:
    """The table as Markdown.

    Args:
        results: of the finished cells, at least one.
        accuracy: the figure's name, e.g. ``eval/heldout/accuracy``.
        baseline: the arm that others are compared with; None: the one whose rule is all.
    """
    arms = arms_of(results)
    kl = "eval/kl"
    starts = {result.seed: result.step_0 for result in results}
    rows = [
        [
            "(step 0)",
            str(len(starts)),
            "0",
            _shown(t_interval([start[accuracy] for start in starts.values()])),
            _shown(t_interval([start[kl] for start in starts.values()])),
            *[ABSENT] * 5,
        ]
    ]
    compared = next(
        (a for a in arms if (a.arm if baseline else a.rule) == (baseline or "all")), None
    )
    for arm in arms:
        same_share = (other for other in arms if other.rule == "random" and other.rho == arm.rho)
        chance = next(same_share, None)
        rows.append(
            [
                arm.arm,
                str(len(arm.results)),
                f"{fmean(r.tokens_trained for r in arm.results.values()):,.0f}",
                _shown(t_interval(list(arm.by_seed(accuracy).values()))),
                _shown(t_interval(list(arm.by_seed(kl).values()))),
                _difference(arm, compared, accuracy),
                _difference(arm, compared, kl),
                _difference(arm, chance, accuracy),
                _difference(arm, chance, kl),
                f"{median(r.step_seconds for r in arm.results.values()):.0f}",
            ]
        )
    columns = [column.format(baseline=baseline or "all") for column in _COLUMNS]
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(_COLUMNS) - 1))
    written = fmean(result.tokens_written for result in results)
    legend = _LEGEND.format(
        accuracy=accuracy,
        tokens=written,
        baseline=baseline or "all",
        the_baseline=f"the arm `{baseline}`" if baseline else "the arm of the rule `all`",
    )
    return "\n".join(lines) + "\n\n" + legend


def _difference(arm: ArmFigures, baseline: ArmFigures | None, name: str) -> str:
    if baseline is None or baseline.arm == arm.arm:
        return ABSENT
    found = paired_difference(arm.by_seed(name), baseline.by_seed(name))
    return ABSENT if found is None else _shown(found, sign="+")


def _shown(interval: Interval, sign: str = "") -> str:
    mean = f"{interval.mean:{sign}.4f}"
    return mean if math.isnan(interval.half_width) else f"{mean} ± {interval.half_width:.4f}"
