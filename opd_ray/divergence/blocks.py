"""How rows are cut up: chunks for the matrix products, and blocks within a chunk for the rest.

A chunk holds [C, V] logits, the only tensors with a vocabulary axis; a block of its rows is small
enough for a processor's cache, so that the many elementwise passes do not go to memory. The k
likeliest tokens of a row are found block by block too.
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

    @classmethod
    def of(
        cls, hidden_ND: torch.Tensor, vocab: int, chunk_size: int | None, temperature: float
    ) -> Cut:
        """For those hidden rows; ``chunk_size`` as for :func:`chunk_rows`."""
        chunk = chunk_rows(len(hidden_ND), vocab, hidden_ND.dtype, chunk_size)
        block = block_rows(chunk, vocab, hidden_ND.device)
        return cls(vocab, chunk, block, compute_dtype(hidden_ND.dtype), temperature)


def chunk_rows(num_rows: int, vocab: int, dtype: torch.dtype, chunk_size: int | None) -> int:
    """Rows in a chunk: ``chunk_size``, or by the two limits above.

    Raises:
        ValueError: a chunk_size below 1.
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


# Columns of one group.
_GROUPED = 16


def likeliest(logits_BV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids [B, k] of the k greatest of each row, in descending order.

    As ``torch.topk``, which is three times as slow on a CPU: columns are put into groups, the k
    groups with the greatest maxima hold the k greatest values, and only their columns are sorted.
    """
    groups = logits_BV.shape[1] // _GROUPED
    if groups <= k:
        top = logits_BV.topk(k, dim=-1)
        return top.values, top.indices
    # Column j is in group j modulo the number of groups: the maximum runs over contiguous rows.
    grouped = logits_BV[:, : groups * _GROUPED].unflatten(1, (_GROUPED, groups))
    group_Bk = grouped.amax(dim=1).topk(k, dim=-1).indices
    steps = torch.arange(0, groups * _GROUPED, groups, device=logits_BV.device)
    ids_BE = (group_Bk[:, None, :] + steps[:, None]).flatten(1)
    rest = torch.arange(groups * _GROUPED, logits_BV.shape[1], device=logits_BV.device)
    ids_BE = torch.cat((ids_BE, rest.expand(len(logits_BV), -1)), dim=1)
    top = logits_BV.gather(1, ids_BE).topk(k, dim=-1)
    return top.values, ids_BE.gather(1, top.indices)
