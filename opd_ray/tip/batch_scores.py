"""Join what the actors return, rollout by rollout, into the scores of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from opd_ray.tip.ragged import count_per_rollout
from opd_ray.tip.scores import SCORES, TokenScores
from opd_ray.types import Rollout, RolloutScores


def batch_scores(
    rollouts: Sequence[Rollout], scores: Sequence[RolloutScores], vocab_size: int
) -> TokenScores:
    """The streamed scores of a batch, in the order of ``rollouts``.

    One that not every kind of teacher knows, as its entropy, is left out where it is there for some
    rollouts only.

    Raises:
        ValueError: the two do not name the same rollouts in the same order, an array does not have
            one value for each response token, or another score is there for some rollouts only.
    """
    names = [rollout.rollout_id for rollout in rollouts]
    if names != [score.rollout_id for score in scores]:
        raise ValueError("rollouts and scores must name the same rollouts in the same order")
    if not rollouts:
        raise ValueError("a batch must have at least one rollout")
    lengths = [len(rollout.response_ids) for rollout in rollouts]

    def joined(name: str, parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
        if SCORES[name].optional and any(part is None for part in parts):
            return None
        whole: list[np.ndarray] = []
        for rollout, part, length in zip(names, parts, lengths, strict=True):
            if part is None:
                raise ValueError(f"{name} is missing for rollout {rollout}, but there for others")
            if np.shape(part) != (length,):
                raise ValueError(
                    f"{name} of rollout {rollout} has shape {np.shape(part)}; it must have one "
                    f"value for each of the {length} response tokens"
                )
            whole.append(part)
        return np.concatenate(whole)

    parts: dict[str, list[np.ndarray | None]] = {
        "entropy": [rollout.entropy for rollout in rollouts],
        "rollout_logprob": [rollout.logprob for rollout in rollouts],
    }
    for name in dict.fromkeys(name for score in scores for name in score.columns):
        parts[name] = [score.columns.get(name) for score in scores]
    joined_N: dict[str, Any] = {f"{name}_N": joined(name, of) for name, of in parts.items()}
    return TokenScores(
        lengths_R=np.array(lengths),
        response_mask_N=np.concatenate([rollout.response_mask for rollout in rollouts]),
        vocab_size=vocab_size,
        **joined_N,
    )


def with_exact_scores(scores: TokenScores, exact: Sequence[RolloutScores]) -> TokenScores:
    """``scores`` with those that the trainer works out over the full vocabulary in their place.

    ``exact`` holds, for each rollout in order, the rows of response_mask 1. The rest (teacher mass,
    union of top-Ks, what vLLM said of the sampled token) stays as it is.

    Raises:
        ValueError: a rollout's number of rows is another.
    """
    mask_N = scores.response_mask_N
    counts_R = count_per_rollout(mask_N, scores.lengths_R)
    if len(exact) != len(counts_R):
        raise ValueError(f"exact scores of {len(exact)} rollouts for a batch of {len(counts_R)}")
    for item, count in zip(exact, counts_R, strict=True):
        for values in item.columns.values():
            if len(values) != count:
                raise ValueError(
                    f"exact scores of rollout {item.rollout_id} have {len(values)} rows; "
                    f"its response has {count} tokens of mask 1"
                )
    changes: dict[str, Any] = {}
    for name in SCORES.keys() & exact[0].columns.keys():
        values_N = np.zeros(len(mask_N), dtype=np.float32)
        values_N[mask_N] = np.concatenate([item.columns[name] for item in exact])
        changes[f"{name}_N"] = values_N
    return replace(scores, **changes)
