"""The one pass over the rows: chunk by chunk, values and gradients together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opd_ray.divergence.blocks import block_rows, chunk_rows, compute_dtype, slices
from opd_ray.divergence.head_gradient import HeadGradient
from opd_ray.divergence.kernels import Kind
from opd_ray.divergence.logits import ProjectedLogits
from opd_ray.divergence.signals import signal_of
from opd_ray.divergence.target import Target


@dataclass(frozen=True, eq=False)
class PassResult:
    """Loss, values, and gradients of the loss for hidden_ND, head_VD and bias_V if wanted."""

    loss: Tensor
    divergence_N: Tensor
    logprob_N: Tensor | None
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class FusedPass:
    """The options of a pass; see :func:`opd_ray.divergence.linear.linear_divergence`."""

    target: Target
    kind: Kind
    beta: float
    temperature: float
    weights_N: Tensor | None
    vocab: int
    chunk_size: int | None
    sampled_ids_N: Tensor | None
    wanted: tuple[bool, bool, bool]  # gradients for hidden_ND, head_VD, bias_V

    def run(self, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None) -> PassResult:
        """Make values and gradients; the arguments have been checked."""
        num_rows, device = hidden_ND.shape[0], hidden_ND.device
        chunk = chunk_rows(
            num_rows,
            self.vocab,
            hidden_ND.dtype,
            self.chunk_size,
            one_below=HeadGradient.rows_in_one(head_VD) if self.wanted[1] else 0,
        )
        weights_N = torch.ones(num_rows, dtype=compute_dtype(hidden_ND.dtype), device=device)
        if self.weights_N is not None:
            weights_N = self.weights_N.detach().to(weights_N)
        divergence_N = torch.empty_like(weights_N)
        logprob_N = None if self.sampled_ids_N is None else torch.empty_like(weights_N)
        gradients = _Gradients(hidden_ND, head_VD, self.vocab, chunk, self.wanted)
        self._go_over(
            hidden_ND, head_VD, bias_V, chunk, weights_N, divergence_N, logprob_N, gradients
        )
        return PassResult(
            loss=(weights_N * divergence_N).sum(),
            divergence_N=divergence_N,
            logprob_N=logprob_N,
            gradients=gradients.result(),
        )

    def _go_over(
        self,
        hidden_ND: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        chunk: int,
        weights_N: Tensor,
        divergence_N: Tensor,
        logprob_N: Tensor | None,
        gradients: _Gradients,
    ) -> None:
        """Fill in the values and add up the gradients; the chunks' buffers end with this call."""
        block = block_rows(chunk, self.vocab, hidden_ND.device)
        signal = signal_of(
            self.target,
            self.kind,
            self.beta,
            vocab=self.vocab,
            chunk=chunk,
            block=block,
            dtype=weights_N.dtype,
            device=hidden_ND.device,
            temperature=self.temperature,
        )
        student = ProjectedLogits(
            hidden_ND,
            head_VD,
            bias_V,
            vocab=self.vocab,
            chunk=chunk,
            block=block,
            dtype=weights_N.dtype,
            temperature=self.temperature,
        )
        scale_N1 = weights_N[:, None] / self.temperature  # d(logits / T) / d(logits) = 1 / T
        for rows in slices(0, len(hidden_ND), chunk):
            student.load(rows)
            signal.load(rows)
            for part in slices(rows.start, rows.stop, block):
                logits_BV = student.block(part)
                sampled_B = None if self.sampled_ids_N is None else self.sampled_ids_N[part]
                divergence_N[part], logprob_B = signal.block_(
                    logits_BV, part, sampled_B, any(self.wanted)
                )
                if logprob_N is not None and logprob_B is not None:
                    logprob_N[part] = logprob_B
                if any(self.wanted):
                    student.store(part, logits_BV.mul_(scale_N1[part]))
            if any(self.wanted):
                gradients.add(rows, student.stored(rows))


class _Gradients:
    """Gradients for hidden rows, head and bias, as far as wanted, from those for the logits."""

    def __init__(
        self,
        hidden_ND: Tensor,
        head_VD: Tensor,
        vocab: int,
        chunk: int,
        wanted: tuple[bool, bool, bool],
    ) -> None:
        self._hidden_ND, self._head_VD, self._vocab = hidden_ND, head_VD[:vocab], vocab
        wants_hidden, wants_head, wants_bias = wanted
        self._grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        self._grad_head = None
        if wants_head:
            self._grad_head = HeadGradient(head_VD, vocab, chunks=-(-len(hidden_ND) // chunk))
        self._grad_bias_V = None
        if wants_bias:
            self._grad_bias_V = head_VD.new_zeros(len(head_VD), dtype=compute_dtype(head_VD.dtype))

    def add(self, rows: slice, gradient_CV: Tensor) -> None:
        """Take in the logits' gradient of one chunk of rows."""
        if self._grad_hidden_ND is not None:
            torch.mm(gradient_CV, self._head_VD, out=self._grad_hidden_ND[rows])
        if self._grad_head is not None:
            self._grad_head.add(gradient_CV, self._hidden_ND[rows])
        if self._grad_bias_V is not None:
            self._grad_bias_V[: self._vocab] += gradient_CV.sum(0, dtype=self._grad_bias_V.dtype)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three gradients in the head's dtype. Call once."""
        return (
            self._grad_hidden_ND,
            None if self._grad_head is None else self._grad_head.result(),
            None if self._grad_bias_V is None else self._grad_bias_V.to(self._head_VD.dtype),
        )
