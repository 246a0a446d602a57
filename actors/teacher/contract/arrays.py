"""What can be wrong with the arrays of a teacher's answer, each as words that name the place.

``who`` names teacher and rollout, ``name`` the array; good arrays yield nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

# Rounding that log-probabilities and probabilities may show (half-precision servers included).
LOGPROB_TOLERANCE = 1e-3
MASS_TOLERANCE = 1e-2


def logprob_problems(
    who: str, name: str, values: Any, shape: tuple[int | None, ...]
) -> Iterator[str]:
    """Of float32 log-probabilities: shape, finite, at most 0, a row's mass at most 1."""
    yield from _float_problems(who, name, values, shape)
    if not fits(values, shape):
        return
    yield from wrong_values(
        who, name, values, values > LOGPROB_TOLERANCE, "log-probabilities of at most 0"
    )
    if values.ndim == 2:
        mass = np.exp(values.astype(np.float64)).sum(axis=1)
        yield from wrong_values(
            who, f"mass of {name}", mass, mass > 1 + MASS_TOLERANCE, "at most 1"
        )


def entropy_problems(who: str, values: Any, m: int, vocab_size: int) -> Iterator[str]:
    """Of entropies [m] float32, nats."""
    yield from _float_problems(who, "entropy", values, (m,))
    if fits(values, (m,)):
        highest = float(np.log(vocab_size))
        bad = (values < -LOGPROB_TOLERANCE) | (values > highest + LOGPROB_TOLERANCE)
        yield from wrong_values(
            who, "entropy", values, bad, f"0 to ln(vocabulary) = {highest:.4f} nats"
        )


def _float_problems(
    who: str, name: str, values: Any, shape: tuple[int | None, ...]
) -> Iterator[str]:
    yield from shape_problems(who, name, values, shape)
    if not isinstance(values, np.ndarray):
        return
    if values.dtype != np.float32:
        yield f"{who}: {name} has dtype {values.dtype}; expected float32"
    if fits(values, shape):
        yield from wrong_values(who, name, values, ~np.isfinite(values), "finite numbers")


def hidden_problems(who: str, values: Any, shape: tuple[int, int | None]) -> Iterator[str]:
    """Of hidden states [m, D], as ``to_array`` gives them."""
    yield from shape_problems(who, "signal.hidden", values, shape)
    if not isinstance(values, np.ndarray):
        return
    if values.dtype == np.uint16:
        # An exponent of all ones is inf or NaN in bfloat16.
        infinite = (values & 0x7F80) == 0x7F80
    elif values.dtype == np.float32:
        infinite = ~np.isfinite(values)
    else:
        yield (
            f"{who}: signal.hidden has dtype {values.dtype}; expected float32, or uint16 with "
            "bfloat16 bits"
        )
        return
    yield from wrong_values(who, "signal.hidden", values, infinite, "finite numbers")


def shape_problems(
    who: str, name: str, values: Any, shape: tuple[int | None, ...]
) -> Iterator[str]:
    """Of an array's shape; axes given as None may have any size."""
    if not isinstance(values, np.ndarray):
        yield f"{who}: {name} is a {type(values).__name__}; expected a numpy array"
    elif not _same_shape(values.shape, shape):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        yield f"{who}: {name} has shape {list(values.shape)}; expected [{wanted}]"


def id_problems(who: str, name: str, ids: Any, vocab_size: int) -> Iterator[str]:
    """Of int32 token ids of any shape."""
    if not isinstance(ids, np.ndarray) or ids.dtype != np.int32:
        got = getattr(ids, "dtype", type(ids).__name__)
        yield f"{who}: {name} has dtype {got}; expected int32"
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iuf":
        bad = (ids < 0) | (ids >= vocab_size)
        yield from wrong_values(who, name, ids, bad, f"ids from 0 to {vocab_size - 1} (vocabulary)")


def _same_shape(got: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(got) == len(wanted) and all(
        want is None or have == want for have, want in zip(got, wanted, strict=True)
    )


def fits(values: Any, shape: tuple[int | None, ...]) -> bool:
    """Whether numbers of that shape have come, so that their values can be looked at."""
    return (
        isinstance(values, np.ndarray)
        and values.dtype.kind in "iuf"
        and _same_shape(values.shape, shape)
    )


def wrong_values(
    who: str, name: str, values: np.ndarray, bad: np.ndarray, expected: str
) -> Iterator[str]:
    """The first position at which ``bad`` (same shape as ``values``) holds, if there is one."""
    if not bad.any():
        return
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    count = int(bad.reshape(len(bad), -1).any(axis=1).sum())
    yield (
        f"{who}, position {place[0]}: {name} is {values[place]}; expected {expected} "
        f"({count} of {len(bad)} positions are wrong)"
    )
