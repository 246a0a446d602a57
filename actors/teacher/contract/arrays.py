"""What can be wrong with the arrays of a teacher's answer, in words that name the place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Rounding that log-probabilities and probabilities may show (half-precision servers included).
LOGPROB_TOLERANCE = 1e-3
MASS_TOLERANCE = 1e-2
# How far two statements of one answer about the same token may lie apart, nats. A server may have
# made them in two passes in half precision; misaligned rows differ by whole nats.
AGREEMENT = 0.1

# Of an array; axes given as None may have any size.
Shape = tuple[int | None, ...]


@dataclass
class ArrayProblems:
    """Collects problems. In every check ``name`` is the array's; a good array adds nothing.

    Checks that return a bool say whether the array's values can be compared with others.
    """

    who: str  # teacher and rollout
    positions: np.ndarray | None = None  # [n] of the rows in the response; None: row t is at t
    found: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """A problem of no particular position."""
        self.found.append(f"{self.who}: {text}")

    def logprobs(self, name: str, values: Any, shape: Shape) -> bool:
        """Of float32 log-probabilities: shape, finite, at most 0, a row's mass at most 1."""
        if not self._floats(name, values, shape):
            return False
        self.wrong(name, values, values > LOGPROB_TOLERANCE, "log-probabilities of at most 0")
        if values.ndim == 2:
            mass_n = np.exp(values.astype(np.float64)).sum(axis=1)
            self.wrong(f"mass of {name}", mass_n, mass_n > 1 + MASS_TOLERANCE, "at most 1")
        return True

    def entropies(self, values: Any, n: int, vocab_size: int) -> None:
        """Of entropies [n] float32, nats."""
        if self._floats("entropy", values, (n,)):
            highest = float(np.log(vocab_size))
            bad = (values < -LOGPROB_TOLERANCE) | (values > highest + LOGPROB_TOLERANCE)
            self.wrong("entropy", values, bad, f"0 to ln(vocabulary) = {highest:.4f} nats")

    def hidden(self, name: str, values: Any, shape: Shape) -> None:
        """Of hidden states [n, D], as ``to_array`` gives them."""
        fits = self.shape(name, values, shape)
        if not isinstance(values, np.ndarray):
            return
        if values.dtype not in (np.float32, np.uint16):
            self.add(
                f"{name} has dtype {values.dtype}; expected float32, or uint16 with bfloat16 bits"
            )
        elif fits:
            # An exponent of all ones is inf or NaN in bfloat16.
            is_bits = values.dtype == np.uint16
            infinite = (values & 0x7F80) == 0x7F80 if is_bits else ~np.isfinite(values)
            self.wrong(name, values, infinite, "finite numbers")

    def ids(self, name: str, ids: Any, vocab_size: int) -> bool:
        """Of int32 token ids of any shape."""
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int32:
            got = getattr(ids, "dtype", type(ids).__name__)
            self.add(f"{name} has dtype {got}; expected int32")
        if not _numbers(ids):
            return False
        bad = (ids < 0) | (ids >= vocab_size)
        self.wrong(name, ids, bad, f"ids from 0 to {vocab_size - 1} (vocabulary)")
        return True

    def named_tokens(self, name: str, topk: Any, shape: Shape, vocab_size: int) -> bool:
        """Of some tokens a row: distinct ids, and log-probabilities that one distribution has."""
        ids, logprobs = topk.ids, topk.logprobs
        fits = self.logprobs(f"{name}.logprobs", logprobs, shape)
        if fits and not logprobs.shape[1]:
            self.add(f"{name} has shape {list(logprobs.shape)}; expected at least one token a row")
            return False
        fits = fits and self.shape(f"{name}.ids", ids, logprobs.shape)
        fits = self.ids(f"{name}.ids", ids, vocab_size) and fits
        if fits:
            in_order = np.sort(ids, axis=1)
            twice = in_order[:, 1:] == in_order[:, :-1]
            self.wrong(f"{name}.ids", in_order[:, 1:], twice, "distinct ids")
        return fits

    def shape(self, name: str, values: Any, shape: Shape) -> bool:
        """Of an array's shape."""
        if not isinstance(values, np.ndarray):
            self.add(f"{name} is a {type(values).__name__}; expected a numpy array")
            return False
        fits = values.ndim == len(shape) and all(
            size in (None, got) for size, got in zip(shape, values.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            self.add(f"{name} has shape {list(values.shape)}; expected [{wanted}]")
        return fits

    def wrong(self, name: str, values: np.ndarray, bad: np.ndarray, expected: str) -> None:
        """The first row at which ``bad`` (same shape as ``values``) holds, if there is one."""
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            position = place[0]
            if self.positions is not None and len(self.positions) == len(bad):
                position = int(self.positions[position])
            count = int(bad.reshape(len(bad), -1).any(axis=1).sum())
            self.found.append(
                f"{self.who}, position {position}: {name} is {values[place]}; expected {expected} "
                f"({count} of {len(bad)} positions are wrong)"
            )

    def _floats(self, name: str, values: Any, shape: Shape) -> bool:
        fits = self.shape(name, values, shape)
        if isinstance(values, np.ndarray) and values.dtype != np.float32:
            self.add(f"{name} has dtype {values.dtype}; expected float32")
        if not fits or not _numbers(values):
            return False
        self.wrong(name, values, ~np.isfinite(values), "finite numbers")
        return True


def _numbers(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "iuf"
