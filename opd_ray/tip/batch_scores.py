"""Join what the actors return, rollout by rollout, into the scores of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from opd_ray.tip.ragged import count_per_rollout
from opd_ray.tip.scores import TokenScores
from opd_ray.types import ExactItemScores, Rollout, RolloutScores

# What RolloutScores says of a rollout as a whole; all its other fields have a value a token.
_OF_THE_ROLLOUT = ("rollout_id", "retries")
# Not told by every kind of teacher: a batch that several scored has it for some rollouts only.
_MAY_BE_UNKNOWN = ("teacher_entropy",)


def batch_scores(
    rollouts: Sequence[Rollout], scores: Sequence[RolloutScores], vocab_size: int
) -> TokenScores:
    """The streamed scores of a batch, in the order of ``rollouts``.

    Raises ValueError if the two do not name the same rollouts in the same order, if an array does
    not have one value for each response token, or if a score is there for some rollouts only. The
    teacher's entropy, which not every kind of teacher knows, is then left out.
    """
    names = [rollout.rollout_id for rollout in rollouts]
    if names != [score.rollout_id for score in scores]:
        raise ValueError("rollouts and scores must name the same rollouts in the same order")
    if not rollouts:
        raise ValueError("a batch must have at least one rollout")
    lengths = [len(rollout.response_ids) for rollout in rollouts]

    def joined(items: Sequence[Any], field: str) -> np.ndarray | None:
        parts = [getattr(item, field) for item in items]
        if all(part is None for part in parts):
            return None
        if field in _MAY_BE_UNKNOWN and any(part is None for part in parts):
            return None
        for name, part, length in zip(names, parts, lengths, strict=True):
            if part is None:
                raise ValueError(f"{field} is missing for rollout {name}, but there for others")
            if np.shape(part) != (length,):
                raise ValueError(
                    f"{field} of rollout {name} has shape {np.shape(part)}; it must have one value "
                    f"for each of the {length} response tokens"
                )
        return np.concatenate(parts)

    scored = {
        f"{field.name}_N": joined(scores, field.name)
        for field in fields(RolloutScores)
        if field.name not in _OF_THE_ROLLOUT
    }
    return TokenScores(
        lengths_R=np.array(lengths),
        response_mask_N=np.concatenate([rollout.response_mask for rollout in rollouts]),
        vocab_size=vocab_size,
        entropy_N=joined(rollouts, "entropy"),
        rollout_logprob_N=joined(rollouts, "logprob"),
        **scored,
    )


def with_exact_scores(scores: TokenScores, exact: Sequence[ExactItemScores]) -> TokenScores:
    """``scores`` with those that the trainer works out over the full vocabulary in their place.

    ``exact`` holds, for each rollout in order, the rows of response_mask 1. The rest (teacher mass,
    union of top-Ks, what vLLM said of the sampled token) stays as it is. Raises ValueError if a
    rollout's number of rows is another.
    """
    mask_N = scores.response_mask_N
    counts_R = count_per_rollout(mask_N, scores.lengths_R)
    if len(exact) != len(counts_R):
        raise ValueError(f"exact scores of {len(exact)} rollouts for a batch of {len(counts_R)}")
    for item, count in zip(exact, counts_R, strict=True):
        if len(item.entropy) != count:
            raise ValueError(
                f"exact scores of rollout {item.rollout_id} have {len(item.entropy)} rows; "
                f"its response has {count} tokens of mask 1"
            )

    def spread(field: str) -> np.ndarray:
        values_N = np.zeros(len(mask_N), dtype=np.float32)
        values_N[mask_N] = np.concatenate([getattr(item, field) for item in exact])
        return values_N

    names = (
        "entropy",
        "reverse_kl",
        "forward_kl",
        "jsd",
        "teacher_logprob",
        "teacher_entropy",
    )
    changes: dict[str, Any] = {f"{name}_N": spread(name) for name in names}
    return replace(scores, **changes)
