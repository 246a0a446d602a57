"""How rows are cut up: chunks for the matrix products, and blocks within a chunk for the rest.

A chunk holds [C, V] logits, the only tensors with a vocabulary axis; a block of its rows is small
enough for a processor's cache, so that the many elementwise passes do not go to memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Bytes of one [C, V] buffer (two are alive), but never fewer rows than CHUNK_ROWS: as each chunk
# reads the whole head, matrix products slow down below that.
CHUNK_BYTES = 2**25
CHUNK_ROWS = 128
# Elements of a block: three of float32 fit a level-3 cache. Smaller ones (level 2) are no faster
# with one thread, and slower where threads, which wait for each other after every operation, are
# interrupted by other processes.
BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True)
class Cut:
    """How the rows of one call are cut up, and how their logits are computed."""

    vocab: int  # tokens; further rows of a head are left out
    chunk: int  # rows
    block: int  # rows
    dtype: torch.dtype  # of softmax, divergence and sums
    temperature: float


def chunk_rows(num_rows: int, vocab: int, dtype: torch.dtype, chunk_size: int | None) -> int:
    """Rows in a chunk: ``chunk_size``, or by the two limits above.

    Raises ValueError on a chunk_size below 1.
    """
    if chunk_size is not None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
        return min(chunk_size, max(num_rows, 1))
    most = max(CHUNK_BYTES // (vocab * dtype.itemsize), CHUNK_ROWS)
    chunks = max(-(-num_rows // most), 1)
    return max(-(-num_rows // chunks), 1)  # even chunks: a last one of few rows costs a whole pass


def block_rows(chunk: int, vocab: int, device: torch.device) -> int:
    """Rows in a block: the whole chunk where launching an operation costs more than its memory."""
    if device.type != "cpu":
        return chunk
    return min(max(BLOCK_ELEMENTS // vocab, 1), chunk)


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """[start, stop) in pieces of ``size``; the last may be shorter."""
    for low in range(start, stop, size):
        yield slice(low, min(low + size, stop))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What softmax, divergence and sums are taken in: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32
