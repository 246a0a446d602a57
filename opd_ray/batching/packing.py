"""Texts side by side in one row of tokens, and what they begin with in common only once.

Samples of one prompt share it, and prompts share the chat template's first lines. A causal model
computes the same for a shared beginning whichever text it stands in, so it is laid down, read and
differentiated once; nothing is padded. The texts form a tree: a segment is a piece of text that
goes on where its parent ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Shorter beginnings are not shared: every segment costs attention calls of its own.
MIN_SHARED = 16

# Tokens of a row, by the tokens in use.
Width = Callable[[int], int]


def exact_width(tokens: int) -> int:
    """No more than are in use."""
    return tokens


@dataclass(frozen=True)
class Segment:
    """Tokens of the row from ``start`` to ``stop``, which follow those of ``ancestors`` in turn."""

    start: int
    stop: int
    ancestors: tuple[Segment, ...] = ()

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Packing:
    """One row of T tokens.

    Attributes:
        ids_T: int64; padding has id 0.
        positions_T: of each token in its text, int64; padding counts from 0.
        segments: in the order in which they lie, from 0 to T; padding is a segment of its own.
        places: by text, where in the row each of its tokens lies.
        padding: tokens at the end of the row that belong to no text.
    """

    ids_T: np.ndarray
    positions_T: np.ndarray
    segments: tuple[Segment, ...]
    places: tuple[np.ndarray, ...]
    padding: int


def by_beginning(texts: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """An order in which equal beginnings are neighbours.

    Returns:
        Indices into ``texts``, and for each of them how many tokens its text shares with the one
        before it in this order: 0, or at least ``MIN_SHARED``. So any run of it, packed, takes the
        tokens of its texts less the shared ones of all but its first.
    """
    # Big-endian bytes sort as the numbers do.
    keys = [np.ascontiguousarray(text, dtype=">u4").tobytes() for text in texts]
    order = sorted(range(len(texts)), key=keys.__getitem__)
    shared = [0] * len(order)
    for i in range(1, len(order)):
        length = _common(texts[order[i - 1]], texts[order[i]])
        shared[i] = length if length >= MIN_SHARED else 0
    return order, shared


def pack(texts: Sequence[np.ndarray], width: Width = exact_width) -> Packing:
    """Lay texts side by side.

    Args:
        texts: token ids, at least one each.
        width: tokens of the row, by the tokens in use.

    Raises:
        ValueError: there is no text, or an empty one.
    """
    if not texts or not all(len(text) for text in texts):
        raise ValueError("only texts with tokens can be packed")
    order, shared = by_beginning(texts)
    segments: list[Segment] = []
    pieces: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    places: list[np.ndarray] = [np.empty(0, np.int64)] * len(texts)
    path: list[Segment] = []  # of the text at hand
    used = 0
    for i, index in enumerate(order):
        text, depth = texts[index], shared[i]
        while sum(segment.tokens for segment in path) > depth:
            path.pop()
        for cut in [*_branches(shared[i + 1 :], depth), len(text)]:
            if cut == depth:
                continue
            segment = Segment(used, used + cut - depth, tuple(path))
            segments.append(segment)
            path.append(segment)
            pieces.append(text[depth:cut])
            positions.append(np.arange(depth, cut))
            used, depth = segment.stop, cut
        places[index] = np.concatenate([np.arange(part.start, part.stop) for part in path])
    padding = width(used) - used
    if padding:
        segments.append(Segment(used, used + padding))
        pieces.append(np.zeros(padding, np.int64))
        positions.append(np.arange(padding))
    return Packing(
        ids_T=np.concatenate(pieces).astype(np.int64),
        positions_T=np.concatenate(positions).astype(np.int64),
        segments=tuple(segments),
        places=tuple(places),
        padding=padding,
    )


def _branches(shared_ahead: Sequence[int], depth: int) -> list[int]:
    """Depths beyond ``depth`` at which later texts leave the one at hand, ascending."""
    found: list[int] = []
    common: float = np.inf
    for shared in shared_ahead:
        common = min(common, shared)
        if common <= depth:
            break
        if not found or common < found[-1]:
            found.append(int(common))
    return found[::-1]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two texts begin with alike."""
    length = min(len(one), len(other))
    if not length:
        return 0
    different = one[:length] != other[:length]
    first = int(different.argmax())
    return first if different[first] else length
