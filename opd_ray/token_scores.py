"""The filter's input from what came in: streamed scores, or streamed ones with exact ones in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from opd_ray.judge import Judged
from opd_ray.tip import TokenScores
from opd_ray.types import ExactItemScores

_EXACT = (
    "entropy",
    "reverse_kl",
    "forward_kl",
    "jsd",
    "teacher_logprob",
    "teacher_entropy",
)


def streamed_token_scores(judged: Sequence[Judged], vocab_size: int) -> TokenScores:
    """Scores of a batch as by-products of rollout and teacher."""
    return TokenScores.from_rollouts(
        [j.rollout for j in judged], [j.scores for j in judged], vocab_size
    )


def with_exact_scores(streamed: TokenScores, exact: Sequence[ExactItemScores]) -> TokenScores:
    """The same batch with full-vocabulary scores of the student's tokens, one item a rollout, in order.

    What only the streamed source knows (mass on the student's top-K, union divergence) stays.
    """
    mask_N = streamed.response_mask_N
    fields = {}
    for name in _EXACT:
        values_N = np.zeros(len(mask_N), dtype=np.float32)
        values_N[mask_N] = np.concatenate([getattr(item, name) for item in exact])
        fields[f"{name}_N"] = values_N
    return replace(streamed, **fields)
