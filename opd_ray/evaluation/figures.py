"""The figures of one task, by name, from the records of its problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from opd_ray.evaluation.estimators import maj_at_n, mean_at_n, pass_at_n
from opd_ray.evaluation.record import ProblemRecord

LONG_SHARE = 0.9


def figures(name: str, samples: int, records: Sequence[ProblemRecord]) -> dict[str, float]:
    """All figures of a task, as `eval/<name>/...`.

    With `samples` 0, the greedy ones: `accuracy`, its standard error `accuracy_se`, `tokens` (mean
    length), `tokens_q90` (the 90th percentile) and `truncated` (share of cut-off responses).
    With n samples: `mean@n` and `mean@n_se`, `pass@k` for the powers of two below n and for n,
    `maj@n` and `maj@n_se`, and `tokens@n`, `tokens_q90@n`, `truncated@n`.
    """
    correct_PS = np.array([record.correct for record in records], dtype=np.bool_)
    lengths = np.array([record.tokens for record in records])
    ends = np.array([record.finish_reasons for record in records])
    mean = mean_at_n(correct_PS)
    at = f"@{samples}" if samples else ""
    first = f"mean{at}" if samples else "accuracy"
    found = {first: mean.value, f"{first}_se": mean.standard_error}
    if samples:
        found |= {f"pass@{k}": pass_at_n(correct_PS, k) for k in _tries(samples)}
        majority = maj_at_n(correct_PS, [record.extracted for record in records])
        found |= {f"maj{at}": majority.value, f"maj{at}_se": majority.standard_error}
    found |= {
        f"tokens{at}": float(lengths.mean()),
        f"tokens_q90{at}": float(np.quantile(lengths, LONG_SHARE)),
        f"truncated{at}": float((ends == "length").mean()),
    }
    return {f"eval/{name}/{figure}": value for figure, value in found.items()}


def _tries(samples: int) -> Iterator[int]:
    """2, 4, 8, ... below the number of samples, then that number (pass@1 is mean@n)."""
    k = 2
    while k < samples:
        yield k
        k *= 2
    yield samples
