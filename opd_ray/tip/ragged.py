"""Order statistics inside the rollouts of a flat batch, without a loop over tokens or rollouts.

What is said of rollouts here holds of any groups that lie side by side, turns among them.
"""

from __future__ import annotations

import numpy as np


def rollout_starts(lengths_R: np.ndarray) -> np.ndarray:
    """The flat index at which each rollout starts, [R] int64."""
    return np.cumsum(lengths_R) - lengths_R


def positions(lengths_R: np.ndarray) -> np.ndarray:
    """Position of each token within its rollout, from 0, [N] int64."""
    return np.arange(int(np.sum(lengths_R))) - np.repeat(rollout_starts(lengths_R), lengths_R)


def count_per_rollout(flags_N: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
    """How many flags are set in each rollout, [R] int64."""
    counts_R = np.zeros(len(lengths_R), dtype=np.int64)
    filled = np.flatnonzero(
        lengths_R
    )  # numpy's reduceat takes an empty stretch for its first value
    if len(filled):
        starts = rollout_starts(lengths_R)[filled]
        counts_R[filled] = np.add.reduceat(flags_N, starts, dtype=np.int64)
    return counts_R


def run_lengths(values_N: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
    """Lengths of the runs of equal values, none of which goes beyond its rollout, [J] int64."""
    if len(values_N) == 0:
        return np.zeros(0, dtype=np.int64)
    begins_N = np.empty(len(values_N), dtype=np.bool_)
    np.not_equal(values_N[1:], values_N[:-1], out=begins_N[1:])
    begins_N[rollout_starts(lengths_R)[lengths_R > 0]] = True
    return np.diff(np.flatnonzero(begins_N), append=len(values_N))


# Rollouts that are longer on average are sorted one by one, each only as far as is needed. Of
# shorter ones a call each takes longer than to sort all at once.
_LONG = 100


def order_statistics(
    values_N: np.ndarray, lengths_R: np.ndarray, places_R: np.ndarray
) -> np.ndarray:
    """The value at a place in the ascending order of each rollout, [R] float32; 0 if empty.

    Args:
        values_N: float32, none of them NaN.
        lengths_R: tokens of each rollout.
        places_R: from 0, below the rollout's length.
    """
    found_R = np.zeros(len(lengths_R), dtype=np.float32)
    filled = np.flatnonzero(lengths_R)
    starts, lengths, places = rollout_starts(lengths_R)[filled], lengths_R[filled], places_R[filled]
    if len(values_N) < _LONG * len(filled):
        sorted_N = values_of_codes(sorted_codes(order_code(values_N), lengths))
        found_R[filled] = sorted_N[starts + places]
        return found_R
    of_each = zip(starts.tolist(), lengths.tolist(), places.tolist(), strict=True)
    found_R[filled] = [
        np.partition(values_N[start : start + length], place)[place]
        for start, length, place in of_each
    ]
    return found_R


def order_code(values_N: np.ndarray) -> np.ndarray:
    """uint32 codes in the order of the float32 values: equal values, equal codes (-0.0 is 0.0)."""
    bits_N = (values_N.astype(np.float32, copy=False) + np.float32(0)).view(np.uint32)
    negative_N = bits_N >> np.uint32(31) == 1
    return np.where(negative_N, ~bits_N, bits_N | np.uint32(0x80000000))


def sorted_codes(codes_N: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
    """The codes of each rollout in ascending order, rollouts in place, [N] uint32.

    Rollout and code are packed into one integer, so that a single plain sort does it; sorting
    indices by two keys takes ten times as long.
    """
    packed_N = np.repeat(np.arange(len(lengths_R), dtype=np.uint64), lengths_R)
    packed_N <<= np.uint64(32)
    packed_N |= codes_N
    # numpy's stable sort profits from the rollouts being in order already.
    packed_N.sort(kind="stable")
    return packed_N.astype(np.uint32)


def values_of_codes(codes_N: np.ndarray) -> np.ndarray:
    """The float32 values behind :func:`order_code`."""
    negative_N = codes_N >> np.uint32(31) == 0
    return np.where(negative_N, ~codes_N, codes_N & np.uint32(0x7FFFFFFF)).view(np.float32)
