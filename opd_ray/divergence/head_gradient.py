"""The gradient of an output head, summed over chunks of rows in float32 (or float64)."""

from __future__ import annotations

import torch
from torch import Tensor

from opd_ray.divergence.blocks import compute_dtype, slices

# Elements of one piece of a low-precision head. A piece's product and its float32 sum then stay in
# the cache between the product and the addition.
_PIECE_ELEMENTS = 2**20


class HeadGradient:
    """Sum over chunks of gradient_CV^T hidden_CD, [V, D]; rows beyond ``vocab`` stay zero.

    With a low-precision head the products run in its dtype and their sums in float32, piece by
    piece: no second tensor of the head's size is alive beside the sum, and the pieces are freed one
    by one as :meth:`result` rounds them.
    """

    def __init__(self, head_VD: Tensor, vocab: int, chunks: int) -> None:
        self._rows, self._width = head_VD.shape
        self._dtype = head_VD.dtype
        self._vocab = vocab
        self._device = head_VD.device
        # One chunk needs no sum: the product itself accumulates in float32.
        sum_dtype = self._dtype if chunks == 1 else compute_dtype(self._dtype)
        self._direct = sum_dtype == self._dtype
        size = vocab if self._direct else max(_PIECE_ELEMENTS // self._width, 1)
        self._pieces = list(slices(0, vocab, size))
        self._sums: list[Tensor] = []
        if self._direct:
            self._total_VD = self._empty(self._rows)
            self._total_VD[vocab:].zero_()
            self._sums.append(self._total_VD[:vocab])
        else:
            self._sums = [self._empty(p.stop - p.start, sum_dtype) for p in self._pieces]
            self._product = self._empty(size)
        self._started = False

    @staticmethod
    def fits_one(hidden_ND: Tensor, head_VD: Tensor) -> bool:
        """Whether one chunk of all rows takes less memory than several and a float32 sum.

        For a low-precision head: [N, V] logits in its dtype against a float32 [V, D]. Any other
        head's gradient is itself the sum.
        """
        if compute_dtype(head_VD.dtype) == head_VD.dtype:
            return False
        return len(hidden_ND) * head_VD.dtype.itemsize <= head_VD.shape[1] * torch.float32.itemsize

    def add(self, gradient_CV: Tensor, hidden_CD: Tensor) -> None:
        """Add one chunk's product; both in the head's dtype."""
        for piece, sum_RD in zip(self._pieces, self._sums, strict=True):
            part_RC = gradient_CV[:, piece].T
            if self._direct and not self._started:
                torch.mm(part_RC, hidden_CD, out=sum_RD)
            elif self._direct:
                sum_RD.addmm_(part_RC, hidden_CD)
            else:
                product_RD = torch.mm(part_RC, hidden_CD, out=self._product[: len(sum_RD)])
                if self._started:
                    sum_RD.add_(product_RD)
                else:
                    sum_RD.copy_(product_RD)
        self._started = True

    def result(self) -> Tensor:
        """The gradient in the head's dtype, [V, D]. Call once: it hands over or frees the sums."""
        if not self._started:
            return self._empty(self._rows).zero_()
        if self._direct:
            return self._total_VD
        total_VD = self._empty(self._rows)
        total_VD[self._vocab :].zero_()
        for piece in reversed(self._pieces):
            total_VD[piece] = self._sums.pop()
        return total_VD

    def _empty(self, rows: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(rows, self._width, dtype=dtype or self._dtype, device=self._device)
