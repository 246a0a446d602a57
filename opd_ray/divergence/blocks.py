"""How rows are cut up: chunks for the matrix products, and blocks within a chunk for the rest.

A chunk holds [C, V] logits, the only tensors with a vocabulary axis; a block of its rows is small
enough for a processor's cache, so that the many elementwise passes do not go to memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from opd_ray.divergence.target import HiddenTarget, LogitsTarget

# Elements of one [C, V] buffer: 32 MiB of float32.
CHUNK_ELEMENTS = 2**23
# A processor's level-2 cache holds about three such float32 blocks a core.
BLOCK_ELEMENTS = 2**17


def chunk_rows(rows: int, vocab: int, chunk_size: int | None) -> int:
    """Rows in a chunk: ``chunk_size``, or so many that a buffer has about CHUNK_ELEMENTS elements.

    Raises ValueError on a chunk_size below 1.
    """
    if chunk_size is not None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
        return min(chunk_size, max(rows, 1))
    most = max(CHUNK_ELEMENTS // vocab, 1)
    chunks = max(-(-rows // most), 1)
    return max(-(-rows // chunks), 1)  # even chunks: a last chunk of one row costs a whole pass


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


class ProjectedLogits:
    """Logits of hidden rows under an output head, one chunk at a time."""

    def __init__(
        self,
        hidden_ND: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        *,
        vocab: int,
        chunk: int,
        block: int,
        dtype: torch.dtype,
        temperature: float,
    ) -> None:
        self._hidden_ND = hidden_ND.detach()
        self._head_VD = head_VD.detach()[:vocab]
        self._bias_V = None if bias_V is None else bias_V.detach()[:vocab]
        self._temperature = temperature
        self._start = 0
        self._chunk_CV = hidden_ND.new_empty(chunk, vocab)
        # Blocks of a chunk that already has the right dtype are worked on where they are.
        self._block_BV = (
            None if hidden_ND.dtype == dtype else hidden_ND.new_empty(block, vocab, dtype=dtype)
        )

    def load(self, rows: slice) -> None:
        """Compute the logits of a chunk of rows."""
        self._start = rows.start
        hidden_CD = self._hidden_ND[rows]
        chunk_CV = self._chunk_CV[: len(hidden_CD)]
        if self._bias_V is None:
            torch.mm(hidden_CD, self._head_VD.T, out=chunk_CV)
        else:
            torch.addmm(self._bias_V, hidden_CD, self._head_VD.T, out=chunk_CV)

    def block(self, rows: slice) -> Tensor:
        """Logits of some rows of the loaded chunk, divided by the temperature, to be overwritten.

        Ask once for each row: the block may be part of the chunk's own storage.
        """
        logits_BV = self.stored(rows)
        if self._block_BV is not None:
            logits_BV = self._block_BV[: len(logits_BV)].copy_(logits_BV)
        return logits_BV if self._temperature == 1.0 else logits_BV.div_(self._temperature)

    def store(self, rows: slice, values_BV: Tensor) -> None:
        """Put what a block has become back into the chunk, in the dtype of the products."""
        if self._block_BV is not None:
            self.stored(rows).copy_(values_BV)

    def stored(self, rows: slice) -> Tensor:
        """The chunk's own storage for those rows, in the dtype of the matrix products."""
        return self._chunk_CV[rows.start - self._start : rows.stop - self._start]


class GivenLogits:
    """Logits that the teacher computed itself."""

    def __init__(
        self, logits_NV: Tensor, *, vocab: int, block: int, dtype: torch.dtype, temperature: float
    ) -> None:
        self._logits_NV = logits_NV.detach()[:, :vocab]
        self._temperature = temperature
        self._block_BV = logits_NV.new_empty(block, vocab, dtype=dtype)

    def load(self, rows: slice) -> None:
        """Nothing to compute."""

    def block(self, rows: slice) -> Tensor:
        """A copy of some rows, divided by the temperature, to be overwritten."""
        logits_BV = self._logits_NV[rows]
        logits_BV = self._block_BV[: len(logits_BV)].copy_(logits_BV)
        return logits_BV if self._temperature == 1.0 else logits_BV.div_(self._temperature)


def teacher_logits(
    target: HiddenTarget | LogitsTarget,
    *,
    vocab: int,
    chunk: int,
    block: int,
    dtype: torch.dtype,
    temperature: float,
) -> ProjectedLogits | GivenLogits:
    """The source of the teacher's logits over the whole vocabulary."""
    if isinstance(target, LogitsTarget):
        return GivenLogits(
            target.logits_NV, vocab=vocab, block=block, dtype=dtype, temperature=temperature
        )
    return ProjectedLogits(
        target.hidden_ND,
        target.head_VD,
        target.bias_V,
        vocab=vocab,
        chunk=chunk,
        block=block,
        dtype=dtype,
        temperature=temperature,
    )
