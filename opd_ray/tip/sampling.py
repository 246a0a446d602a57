"""Weighted sampling without replacement as a race: every token draws a key, the greatest keys win.

Token i's arrival time is exponential with rate w_i; the first k to arrive are k draws without
replacement, each in proportion to the weights of those left (Efraimidis and Spirakis 2006; taking
logarithms gives the Gumbel form). The uniform number of a token is a hash of its rollout's seed and
its position: the same wherever and in whatever batch it is computed.
"""

from __future__ import annotations

import numpy as np

# SplitMix64 (Steele, Lea and Flood 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
# Rollouts that draw at a time: numbers on the way to a key take 50 bytes a token.
_TOGETHER = 64


def uniforms(
    seeds_R: np.ndarray, lengths_R: np.ndarray, positions_M: np.ndarray, salt: int
) -> np.ndarray:
    """A number in (0, 1) a token, [M] float64, from rollout seed, position and ``salt``."""
    salt_1 = _mixed(np.array([salt], dtype=np.uint64))
    states_R = _mixed(np.asarray(seeds_R).astype(np.uint64) ^ salt_1)
    numbers_M = positions_M.astype(np.uint64)
    numbers_M += np.uint64(1)
    numbers_M *= _GOLDEN
    numbers_M += np.repeat(states_R, lengths_R)
    numbers_M = _mixed(numbers_M)
    numbers_M >>= np.uint64(11)
    uniforms_M = numbers_M.astype(np.float64)
    uniforms_M += 0.5
    uniforms_M *= 2.0**-53
    return uniforms_M


def drawn_keys(
    weights_M: np.ndarray,
    seeds_R: np.ndarray,
    lengths_R: np.ndarray,
    positions_M: np.ndarray,
    salt: int,
) -> np.ndarray:
    """:func:`race_keys` with the :func:`uniforms` of each token, [M] float32."""
    keys_M = np.empty(len(weights_M), dtype=np.float32)
    edges = [0, *np.cumsum(lengths_R).tolist()]
    for first in range(0, len(lengths_R), _TOGETHER):
        those = slice(first, first + _TOGETHER)
        tokens = slice(edges[first], edges[min(first + _TOGETHER, len(lengths_R))])
        uniforms_n = uniforms(seeds_R[those], lengths_R[those], positions_M[tokens], salt)
        keys_M[tokens] = race_keys(weights_M[tokens], uniforms_n)
    return keys_M


def race_keys(weights_M: np.ndarray, uniforms_M: np.ndarray) -> np.ndarray:
    """Keys, [M] float32: the k greatest are k draws without replacement, in proportion to weights.

    Tokens of weight 0 come after all others, in uniform order.

    Raises:
        ValueError: a negative weight.
    """
    if np.any(weights_M < 0):
        raise ValueError(f"sampling weights must not be negative, but one is {weights_M.min()}")
    with np.errstate(divide="ignore"):
        times_M = -np.log(uniforms_M) / weights_M
    # Float32 keeps 24 bits of every time, so only about one token in 10^7 ties. Times of weight 0
    # lie beyond all others.
    np.clip(times_M, 2.0**-100, 2.0**99, out=times_M)
    np.copyto(times_M, (1.0 + uniforms_M) * 2.0**100, where=weights_M == 0)
    np.negative(times_M, out=times_M)
    return times_M.astype(np.float32)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit flips every output bit with probability a half."""
    numbers = numbers ^ (numbers >> np.uint64(30))
    numbers *= _MIX_1
    numbers ^= numbers >> np.uint64(27)
    numbers *= _MIX_2
    numbers ^= numbers >> np.uint64(31)
    return numbers
