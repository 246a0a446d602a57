"""The weighted mixture of several teachers' distributions, from what each says of a few tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd_ray.types import TopK


def mixed_logprobs(logprobs: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    """log sum share x p of the same tokens under every member, in the shape given; float32.

    Exact: a token's probability under the mixture follows from its probabilities alone.
    """
    weighted = [
        values.astype(np.float64) + np.log(share)
        for values, share in zip(logprobs, shares, strict=True)
    ]
    return np.logaddexp.reduce(weighted, axis=0).astype(np.float32)


def mixed_topk(
    tops: Sequence[TopK], shares: Sequence[float], ids_mE: np.ndarray, exact_mE: np.ndarray, k: int
) -> TopK:
    """The mixture's k likeliest tokens, as far as they can be known from lists of likeliest tokens.

    Candidates are the tokens of every list and those of ``ids_mE``. The latter's log-probabilities
    are known. For another token, a member that does not list it counts as giving it nothing: what
    it does give stays in the tail, and is less than that member's last listed probability. So the
    mass named is never above the mixture's, token by token, and a token is wrongly left out only
    if all its unlisted mass would have made the difference.

    Args:
        tops: each member's likeliest tokens, [m, k_i], distinct within a row.
        shares: of the members in the mixture.
        ids_mE: [m, E] tokens whose probability under the mixture is known; they may repeat.
        exact_mE: [m, E] their log-probabilities, nats.
        k: tokens wanted a row; at most as many as some list has.
    """
    ids = np.concatenate([top.ids for top in tops] + [ids_mE], axis=1).astype(np.int64)
    weighted = [
        share * np.exp(top.logprobs.astype(np.float64))
        for top, share in zip(tops, shares, strict=True)
    ]
    listed = np.concatenate([*weighted, np.zeros(ids_mE.shape)], axis=1)
    known = np.concatenate(
        [np.full(part.shape, -np.inf) for part in weighted] + [exact_mE.astype(np.float64)], axis=1
    )
    order = np.argsort(ids, axis=1, kind="stable")
    ids, listed, known = (np.take_along_axis(a, order, axis=1) for a in (ids, listed, known))
    # Equal ids are neighbours now: each run is one candidate, held by its first place.
    first = np.ones(ids.shape, bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(first)  # row by row; a row's first place always starts a run
    mass = np.add.reduceat(listed.ravel(), starts)
    exact = np.maximum.reduceat(known.ravel(), starts)
    with np.errstate(divide="ignore"):
        value = np.where(np.isfinite(exact), exact, np.log(mass))
    candidates = np.full(ids.shape, -np.inf)
    candidates.ravel()[starts] = value
    likeliest = np.argsort(-candidates, axis=1, kind="stable")[:, :k]
    return TopK(
        ids=np.take_along_axis(ids, likeliest, axis=1).astype(np.int32),
        logprobs=np.take_along_axis(candidates, likeliest, axis=1).astype(np.float32),
    )
