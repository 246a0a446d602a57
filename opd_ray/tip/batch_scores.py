"""Join what the actors return, rollout by rollout, into the scores of a batch."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from opd_ray.tip.ragged import count_per_rollout
from opd_ray.tip.scores import SCORES, TokenScores
from opd_ray.types import Rollout, RolloutScores


def batch_scores(
    rollouts: Sequence[Rollout],
    scores: Sequence[RolloutScores],
    vocab_size: int,
    wanted: Container[str] = SCORES,
) -> TokenScores:
    """The streamed scores of a batch, in the order of ``rollouts``.

    A teacher's columns have a value for each token that the student wrote; the others hold 0. A
    score that not every kind of teacher knows, as its entropy, is left out where it is there for
    some rollouts only. A rollout in which the student wrote nothing needs no column.

    Args:
        rollouts: at least one.
        scores: what their teachers said, rollout by rollout.
        vocab_size: the student's.
        wanted: names of the scores that somebody reads; the others are left out.

    Raises:
        ValueError: the two do not name the same rollouts in the same order, an array does not have
            one value for each token, or another score is there for some rollouts only.
    """
    names = [rollout.rollout_id for rollout in rollouts]
    if names != [score.rollout_id for score in scores]:
        raise ValueError("rollouts and scores must name the same rollouts in the same order")
    if not rollouts:
        raise ValueError("a batch must have at least one rollout")
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    written = [rollout.written_tokens for rollout in rollouts]

    def joined(
        name: str, parts: Sequence[np.ndarray | None], sizes: Sequence[int], tokens: str
    ) -> np.ndarray | None:
        whole: list[np.ndarray] = []
        for rollout, part, size in zip(names, parts, sizes, strict=True):
            if part is None:
                if not size:
                    continue
                if SCORES[name].optional:
                    return None
                raise ValueError(f"{name} is missing for rollout {rollout}, but there for others")
            if np.shape(part) != (size,):
                raise ValueError(
                    f"{name} of rollout {rollout} has shape {np.shape(part)}; it must have one "
                    f"value for each of the {size} {tokens}"
                )
            whole.append(part)
        return np.concatenate(whole)

    mask_N = np.concatenate([rollout.response_mask for rollout in rollouts])
    written_N = mask_N != 0
    found_N: dict[str, Any] = {}
    for name, own in (
        ("entropy", [rollout.entropy for rollout in rollouts]),
        ("rollout_logprob", [rollout.logprob for rollout in rollouts]),
    ):
        if name in wanted:
            found_N[f"{name}_N"] = joined(name, own, lengths, "response tokens")
    told = dict.fromkeys(name for score in scores for name in score.columns)
    for name in [name for name in told if name in wanted]:
        columns = [score.columns.get(name) for score in scores]
        values_M = joined(name, columns, written, "tokens that the student wrote")
        if values_M is not None:
            found_N[f"{name}_N"] = _spread(values_M, written_N)
    if any(rollout.turns is not None for rollout in rollouts):
        turns = [
            np.zeros(length, dtype=np.int16) if rollout.turns is None else rollout.turns
            for rollout, length in zip(rollouts, lengths, strict=True)
        ]
        found_N["turns_N"] = joined("turns", turns, lengths, "response tokens")
    return TokenScores(
        lengths_R=np.array(lengths), response_mask_N=mask_N, vocab_size=vocab_size, **found_N
    )


def with_exact_scores(
    scores: TokenScores, exact: Sequence[RolloutScores], wanted: Container[str] = SCORES
) -> TokenScores:
    """``scores`` with those that the trainer works out over the full vocabulary in their place.

    ``exact`` holds, for each rollout in order, the rows of response_mask 1; of one without any it
    may hold no column. The rest (teacher mass, union of top-Ks, what vLLM said of the sampled
    token) stays as it is. ``wanted`` is as of :func:`batch_scores`.

    Raises:
        ValueError: a rollout's number of rows is another.
    """
    mask_N = scores.response_mask_N
    counts_R = count_per_rollout(mask_N, scores.lengths_R)
    if len(exact) != len(counts_R):
        raise ValueError(f"exact scores of {len(exact)} rollouts for a batch of {len(counts_R)}")
    for item, count in zip(exact, counts_R, strict=True):
        for rows in {len(values) for values in item.columns.values()} or {0}:
            if rows != count:
                raise ValueError(
                    f"exact scores of rollout {item.rollout_id} have {rows} rows; "
                    f"its response has {count} tokens of mask 1"
                )
    written = [item.columns for item, count in zip(exact, counts_R, strict=True) if count]
    changes: dict[str, Any] = {}
    told = SCORES.keys() & (written[0].keys() if written else ())
    for name in [name for name in told if name in wanted]:
        values_M = np.concatenate([columns[name] for columns in written])
        changes[f"{name}_N"] = _spread(values_M, mask_N)
    return replace(scores, **changes)


def _spread(values_M: np.ndarray, mask_N: np.ndarray) -> np.ndarray:
    """Values of the tokens that the student wrote, with 0 at all others: [N] float32."""
    if len(values_M) == len(mask_N):
        return values_M
    values_N = np.zeros(len(mask_N), dtype=np.float32)
    values_N[mask_N] = values_M
    return values_N
