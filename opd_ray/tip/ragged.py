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
    set_before = np.concatenate(([0], np.cumsum(flags_N, dtype=np.int64)))
    starts_R = rollout_starts(lengths_R)
    return set_before[starts_R + lengths_R] - set_before[starts_R]


def run_lengths(values_N: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
    """Lengths of the runs of equal values, none of which goes beyond its rollout, [J] int64."""
    if len(values_N) == 0:
        return np.zeros(0, dtype=np.int64)
    begins_N = np.empty(len(values_N), dtype=np.bool_)
    np.not_equal(values_N[1:], values_N[:-1], out=begins_N[1:])
    begins_N[rollout_starts(lengths_R)[lengths_R > 0]] = True
    return np.diff(np.flatnonzero(begins_N), append=len(values_N))


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
