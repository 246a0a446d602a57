"""The figures of one task, by name, from the records of its problems, and their estimators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb, nan, sqrt

import numpy as np

from opd_ray.evaluation.folder import ProblemRecord
from opd_ray.types import RolloutFigure

LONG_SHARE = 0.9
# What figures of environments, and those of calls, begin with behind the task's name.
ACTING = ("environment/", "tools/")
# Tokens that the engine read: no calls, and the cache depends on what else was under way.
_OF_THE_ENGINE = (RolloutFigure.prompt_tokens, RolloutFigure.cached_tokens)


def figures(name: str, samples: int, records: Sequence[ProblemRecord]) -> dict[str, float]:
    """All figures of a task, as ``eval/<name>/...``.

    With ``samples`` 0, the greedy ones: ``accuracy``, its standard error ``accuracy_se``,
    ``tokens`` (mean length), ``tokens_q90`` (the 90th percentile) and ``truncated`` (share of
    cut-off responses). With n samples: ``mean@n`` and ``mean@n_se``, ``pass@k`` for the powers of
    two below n and for n, ``maj@n`` and ``maj@n_se``, and ``tokens@n``, ``tokens_q90@n``,
    ``truncated@n``.

    Of problems with an environment also each of the figures that it gives, and of the account of
    tool calls, as means with standard errors over problems: ``environment/<name>@n``,
    ``tools/calls@n`` and so on, and the same with ``_se``.
    """
    # In the order in which they were written sums would round otherwise each time.
    records = sorted(records, key=lambda record: record.id)
    correct_QA = np.array([record.correct for record in records], dtype=np.bool_)
    lengths = np.array([record.tokens for record in records])
    ends = np.array([record.finish_reasons for record in records])
    mean = mean_at_n(correct_QA)
    at = f"@{samples}" if samples else ""
    first = f"mean{at}" if samples else "accuracy"
    found = {first: mean.value, f"{first}_se": mean.standard_error}
    if samples:
        found |= {f"pass@{k}": pass_at_n(correct_QA, k) for k in _tries(samples)}
        majority = maj_at_n(correct_QA, [record.extracted for record in records])
        found |= {f"maj{at}": majority.value, f"maj{at}_se": majority.standard_error}
    found |= {
        f"tokens{at}": float(lengths.mean()),
        f"tokens_q90{at}": float(np.quantile(lengths, LONG_SHARE)),
        f"truncated{at}": float((ends != "stop").mean()),
    }
    for name_of, estimate in _acting(records).items():
        found |= {f"{name_of}{at}": estimate.value, f"{name_of}{at}_se": estimate.standard_error}
    return {f"eval/{name}/{figure}": value for figure, value in found.items()}


def _acting(records: Sequence[ProblemRecord]) -> dict[str, Estimate]:
    """Figures of environments and calls, over the problems that have any.

    A figure that is missing in a rollout, as where its environment hangs, counts 0.
    """
    acting = [record.figures for record in records if record.figures]
    names = dict.fromkeys(name for figures in acting for one in figures for name in one)
    return {
        name if name.startswith(ACTING) else f"tools/{name}": _over_problems(
            np.array([np.mean([one.get(name, 0.0) for one in figures]) for figures in acting])
        )
        for name in names
        if name not in _OF_THE_ENGINE
    }


def _tries(samples: int) -> Iterator[int]:
    """2, 4, 8, ... below the number of samples, then that number (pass@1 is mean@n)."""
    k = 2
    while k < samples:
        yield k
        k *= 2
    yield samples


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] and the standard error of it (nan for a single problem)."""

    value: float
    standard_error: float


def mean_at_n(correct_QA: np.ndarray) -> Estimate:
    """Mean over problems of the share of samples that are correct.

    The standard error takes problems as drawn from a larger set: the deviation (ddof 1) of the
    problems' own means over the root of their number. Samples of one problem are not independent
    evidence, and this does not treat them so.
    """
    return _over_problems(_table(correct_QA).mean(axis=1))


def pass_at_n(correct_QA: np.ndarray, k: int) -> float:
    """Unbiased share of problems that at least one of k samples solves (Chen et al. 2021, eq. 1).

    With c of A samples correct it is 1 - C(A-c, k) / C(A, k), averaged over problems.

    Raises:
        ValueError: unless 1 <= k <= A.
    """
    table = _table(correct_QA)
    samples = table.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k}: pass@k from {samples} samples needs 1 <= k <= {samples}")
    all_wrong = [comb(samples - int(c), k) / comb(samples, k) for c in table.sum(axis=1)]
    return float(1.0 - np.mean(all_wrong))


def maj_at_n(correct_QA: np.ndarray, answers: Sequence[Sequence[str | None]]) -> Estimate:
    """Share of problems whose most frequent extracted answer is correct.

    ``answers`` holds, like the table, one extracted answer a sample; None does not vote. A tie
    counts as the share of tied answers that are correct, the expected value of drawing one of them.
    A problem without a vote counts 0. Equal answers with different verdicts (a verifier that ran
    out of time) count by the share of correct ones. Standard error as in :func:`mean_at_n`.
    """
    table = _table(correct_QA)
    if [len(row) for row in answers] != [table.shape[1]] * table.shape[0]:
        raise ValueError(
            f"answers do not have the table's shape {table.shape}: give one answer a sample"
        )
    return _over_problems(
        np.array([_majority(row, given) for row, given in zip(table, answers, strict=True)])
    )


def _majority(correct_A: np.ndarray, answers: Sequence[str | None]) -> float:
    verdicts: dict[str, list[bool]] = {}
    for correct, answer in zip(correct_A, answers, strict=True):
        if answer is not None:
            verdicts.setdefault(answer, []).append(bool(correct))
    if not verdicts:
        return 0.0
    most = max(map(len, verdicts.values()))
    return float(np.mean([np.mean(seen) for seen in verdicts.values() if len(seen) == most]))


def _table(correct_QA: np.ndarray) -> np.ndarray:
    table = np.asarray(correct_QA)
    if table.dtype != bool or table.ndim != 2 or table.size == 0:
        raise ValueError(
            f"correct must be a [problems, samples] table of booleans with at least one of each, "
            f"not {table.dtype} of shape {table.shape}"
        )
    return table


def _over_problems(values_Q: np.ndarray) -> Estimate:
    count = len(values_Q)
    error = float(values_Q.std(ddof=1)) / sqrt(count) if count > 1 else nan
    return Estimate(float(values_Q.mean()), error)
