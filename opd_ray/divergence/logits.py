"""Where blocks of logits come from: hidden rows under an output head, or the teacher itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from opd_ray.divergence.blocks import Cut
from opd_ray.divergence.kernels import log_softmax_
from opd_ray.divergence.target import HiddenTarget, LogitsTarget, MixtureTarget


class LogitsSource(ABC):
    """Logits in blocks: load a chunk of rows, then ask once for each of its blocks."""

    def load(self, rows: slice) -> None:  # noqa: B027  (what is given needs none)
        """Compute what the blocks of a chunk of rows need."""

    @abstractmethod
    def block(self, rows: slice) -> Tensor:
        """Logits of some rows of the loaded chunk, divided by the temperature, to be overwritten.

        Ask once for each row: the block may be part of the chunk's own storage.
        """


class ProjectedLogits(LogitsSource):
    """Logits of hidden rows under an output head, one chunk at a time."""

    def __init__(self, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, cut: Cut) -> None:
        self._hidden_ND = hidden_ND.detach()
        self._head_VD = head_VD.detach()[: cut.vocab]
        self._bias_V = None if bias_V is None else bias_V.detach()[: cut.vocab]
        self._temperature = cut.temperature
        self._start = 0
        self._by_onednn = _onednn_is_faster(hidden_ND)
        self._chunk_CV = hidden_ND.new_empty(0 if self._by_onednn else cut.chunk, cut.vocab)
        # Blocks of a chunk that already has the right dtype are worked on where they are.
        self._block_BV = None
        if hidden_ND.dtype != cut.dtype:
            self._block_BV = hidden_ND.new_empty(cut.block, cut.vocab, dtype=cut.dtype)

    def load(self, rows: slice) -> None:
        self._start = rows.start
        hidden_CD = self._hidden_ND[rows]
        if self._by_onednn:
            self._chunk_CV = self._chunk_CV.new_empty(0)  # free the last chunk before the next
            self._chunk_CV = torch.ops.mkldnn._linear_pointwise(
                hidden_CD, self._head_VD, self._bias_V, "none", [], ""
            )
            return
        chunk_CV = self._chunk_CV[: len(hidden_CD)]
        if self._bias_V is None:
            torch.mm(hidden_CD, self._head_VD.T, out=chunk_CV)
        else:
            torch.addmm(self._bias_V, hidden_CD, self._head_VD.T, out=chunk_CV)

    def block(self, rows: slice) -> Tensor:
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


class GivenLogits(LogitsSource):
    """Logits that the teacher computed itself."""

    def __init__(self, logits_NV: Tensor, cut: Cut) -> None:
        self._logits_NV = logits_NV.detach()[:, : cut.vocab]
        self._temperature = cut.temperature
        self._block_BV = logits_NV.new_empty(cut.block, cut.vocab, dtype=cut.dtype)

    def block(self, rows: slice) -> Tensor:
        logits_BV = self._logits_NV[rows]
        logits_BV = self._block_BV[: len(logits_BV)].copy_(logits_BV)
        return logits_BV if self._temperature == 1.0 else logits_BV.div_(self._temperature)


class MixedLogits(LogitsSource):
    """log sum share x softmax of several heads' distributions.

    One chunk of logits a part is alive, and no more.
    """

    def __init__(self, target: MixtureTarget, cut: Cut) -> None:
        self._temperature = cut.temperature
        plain = replace(cut, temperature=1.0)
        self._parts = [
            (math.log(share), ProjectedLogits(part.hidden_ND, part.head_VD, part.bias_V, plain))
            for share, part in zip(target.shares, target.parts, strict=True)
        ]

    def load(self, rows: slice) -> None:
        for _, part in self._parts:
            part.load(rows)

    def block(self, rows: slice) -> Tensor:
        mixed_BV: Tensor | None = None
        for log_share, part in self._parts:
            weighted_BV = log_softmax_(part.block(rows)).add_(log_share)
            if mixed_BV is None:
                mixed_BV = weighted_BV
            else:
                torch.logaddexp(mixed_BV, weighted_BV, out=mixed_BV)
        assert mixed_BV is not None  # a mixture has parts
        return mixed_BV if self._temperature == 1.0 else mixed_BV.div_(self._temperature)


def teacher_logits(target: HiddenTarget | MixtureTarget | LogitsTarget, cut: Cut) -> LogitsSource:
    """The source of the teacher's logits over the whole vocabulary."""
    if isinstance(target, LogitsTarget):
        return GivenLogits(target.logits_NV, cut)
    if isinstance(target, MixtureTarget):
        return MixedLogits(target, cut)
    return ProjectedLogits(target.hidden_ND, target.head_VD, target.bias_V, cut)


def _onednn_is_faster(hidden_ND: Tensor) -> bool:
    """Whether to ask oneDNN for the product: float32 on a processor, where torch.mm asks MKL.

    MKL repacks the head for every chunk; with few rows to a chunk that costs a quarter of the
    product (128 rows, AVX-512: 33 % more time than this). Both compute the same sums. PyTorch
    reaches oneDNN's float32 product by this operator alone; where it is missing, torch.mm serves.
    """
    return (
        hidden_ND.device.type == "cpu"
        and hidden_ND.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
