"""The one pass over the rows: chunk by chunk, values and gradients together.

The gradient of the output head is summed over the chunks in float32 (or float64).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opd_ray.divergence.blocks import Cut, compute_dtype, slices
from opd_ray.divergence.comparison import Comparison, comparison_of
from opd_ray.divergence.logits import ProjectedLogits
from opd_ray.divergence.target import Target
from opd_ray.types import Divergence

# Of the loss, for hidden_ND, head_VD and bias_V, as far as wanted.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class DivergenceOutput:
    """Float32, or float64 for float64 inputs."""

    loss: Tensor  # scalar, nats: sum over rows of weight x divergence; differentiable
    divergence_N: Tensor  # [N] nats, unweighted, detached
    logprob_N: Tensor | None  # [N] nats, student's log-probability of sampled_ids_N, detached


@dataclass(frozen=True, eq=False)
class FusedPass:
    """The options of a pass; see :func:`opd_ray.divergence.linear.linear_divergence`."""

    target: Target
    kind: Divergence
    beta: float
    temperature: float
    weights_N: Tensor | None
    vocab: int
    chunk_size: int | None
    sampled_ids_N: Tensor | None
    wanted: tuple[bool, bool, bool]  # gradients for hidden_ND, head_VD, bias_V

    def run(
        self, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None
    ) -> tuple[DivergenceOutput, Gradients]:
        """Make values and gradients; the arguments have been checked."""
        num_rows, device = hidden_ND.shape[0], hidden_ND.device
        cut = Cut.of(hidden_ND, self.vocab, self.chunk_size, self.temperature)
        student_cut = cut
        if self.chunk_size is None and self.wanted[1] and HeadGradient.fits_one(hidden_ND, head_VD):
            student_cut = replace(cut, chunk=max(num_rows, 1))

        weights_N = torch.ones(num_rows, dtype=cut.dtype, device=device)
        if self.weights_N is not None:
            weights_N = self.weights_N.detach().to(weights_N)
        values = _Values(
            torch.empty_like(weights_N),
            None if self.sampled_ids_N is None else torch.empty_like(weights_N),
            weights_N[:, None] / self.temperature,  # d(logits / T) / d(logits) = 1 / T
        )
        gradients = _Gradients(hidden_ND, head_VD, student_cut, self.wanted)
        student = ProjectedLogits(hidden_ND, head_VD, bias_V, student_cut)
        comparison = comparison_of(self.target, self.kind, self.beta, cut, device)
        for rows in slices(0, num_rows, student_cut.chunk):
            student.load(rows)
            for teacher_rows in slices(rows.start, rows.stop, cut.chunk):
                comparison.load(teacher_rows)
                for part in slices(teacher_rows.start, teacher_rows.stop, cut.block):
                    self._block(student, comparison, part, values)
            if any(self.wanted):
                gradients.add(rows, student.stored(rows))
        del student, comparison  # and with them their buffers, before the gradients are rounded
        loss = (weights_N * values.divergence_N).sum()
        output = DivergenceOutput(loss, values.divergence_N, values.logprob_N)
        return output, gradients.result()

    def _block(
        self, student: ProjectedLogits, comparison: Comparison, part: slice, values: _Values
    ) -> None:
        """Values of a block of rows; their gradients go where the student's logits were."""
        logits_BV = student.block(part)
        sampled_B = None if self.sampled_ids_N is None else self.sampled_ids_N[part]
        wanted = any(self.wanted)
        values.divergence_N[part], logprob_B = comparison.block_(logits_BV, part, sampled_B, wanted)
        if values.logprob_N is not None and logprob_B is not None:
            values.logprob_N[part] = logprob_B
        if wanted:
            student.store(part, logits_BV.mul_(values.scale_N1[part]))


@dataclass(frozen=True, eq=False)
class _Values:
    """What is filled in block by block, and the factor of each row's gradient."""

    divergence_N: Tensor
    logprob_N: Tensor | None
    scale_N1: Tensor


class _Gradients:
    """Gradients for hidden rows, head and bias, as far as wanted, from those for the logits."""

    def __init__(
        self, hidden_ND: Tensor, head_VD: Tensor, cut: Cut, wanted: tuple[bool, bool, bool]
    ) -> None:
        self._hidden_ND, self._head_VD, self._vocab = hidden_ND, head_VD[: cut.vocab], cut.vocab
        wants_hidden, wants_head, wants_bias = wanted
        self._grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        self._grad_head = None
        if wants_head:
            chunks = -(-len(hidden_ND) // cut.chunk)
            self._grad_head = HeadGradient(head_VD, cut.vocab, chunks)
        self._grad_bias_V = None
        if wants_bias:
            self._grad_bias_V = head_VD.new_zeros(len(head_VD), dtype=cut.dtype)

    def add(self, rows: slice, gradient_CV: Tensor) -> None:
        """Take in the logits' gradient of one chunk of rows."""
        if self._grad_hidden_ND is not None:
            torch.mm(gradient_CV, self._head_VD, out=self._grad_hidden_ND[rows])
        if self._grad_head is not None:
            self._grad_head.add(gradient_CV, self._hidden_ND[rows])
        if self._grad_bias_V is not None:
            self._grad_bias_V[: self._vocab] += gradient_CV.sum(0, dtype=self._grad_bias_V.dtype)

    def result(self) -> Gradients:
        """The three gradients in the head's dtype. Call once."""
        return (
            self._grad_hidden_ND,
            None if self._grad_head is None else self._grad_head.result(),
            None if self._grad_bias_V is None else self._grad_bias_V.to(self._head_VD.dtype),
        )


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
        for piece, sum_VD in zip(self._pieces, self._sums, strict=True):
            part_VC = gradient_CV[:, piece].T
            if self._direct and not self._started:
                torch.mm(part_VC, hidden_CD, out=sum_VD)
            elif self._direct:
                sum_VD.addmm_(part_VC, hidden_CD)
            else:
                product_VD = torch.mm(part_VC, hidden_CD, out=self._product[: len(sum_VD)])
                if self._started:
                    sum_VD.add_(product_VD)
                else:
                    sum_VD.copy_(product_VD)
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
