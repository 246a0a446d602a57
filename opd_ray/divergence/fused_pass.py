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
    wanted: tuple[bool, ...]  # gradients for hidden_ND, head_VD, bias_V

    def run(self, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None) -> PassResult:
        """Make values and gradients; the arguments have been checked."""
        num_rows, device = hidden_ND.shape[0], hidden_ND.device
        dtype = compute_dtype(hidden_ND.dtype)
        wants_hidden, wants_head, wants_bias = self.wanted
        chunk = chunk_rows(
            num_rows,
            self.vocab,
            hidden_ND.dtype,
            self.chunk_size,
            one_below=HeadGradient.rows_in_one(head_VD) if wants_head else 0,
        )
        block = block_rows(chunk, self.vocab, device)
        signal = signal_of(
            self.target,
            self.kind,
            self.beta,
            vocab=self.vocab,
            chunk=chunk,
            block=block,
            dtype=dtype,
            device=device,
            temperature=self.temperature,
        )
        student = ProjectedLogits(
            hidden_ND,
            head_VD,
            bias_V,
            vocab=self.vocab,
            chunk=chunk,
            block=block,
            dtype=dtype,
            temperature=self.temperature,
        )
        weights_N = torch.ones(num_rows, dtype=dtype, device=device)
        if self.weights_N is not None:
            weights_N = self.weights_N.detach().to(weights_N)
        scale_N1 = weights_N[:, None] / self.temperature  # d(logits / T) / d(logits) = 1 / T

        sampled_N = self.sampled_ids_N
        divergence_N = torch.empty_like(weights_N)
        logprob_N = None if sampled_N is None else torch.empty_like(weights_N)
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_bias_V = None
        if wants_bias:
            grad_bias_V = torch.zeros(head_VD.shape[0], dtype=dtype, device=device)
        head_gradient = None
        if wants_head:
            head_gradient = HeadGradient(head_VD, self.vocab, chunks=-(-num_rows // chunk))

        for rows in slices(0, num_rows, chunk):
            student.load(rows)
            signal.load(rows)
            for part in slices(rows.start, rows.stop, block):
                logits_BV = student.block(part)
                sampled_B = None if sampled_N is None else sampled_N[part]
                divergence_N[part], logprob_B = signal.block_(
                    logits_BV, part, sampled_B, any(self.wanted)
                )
                if logprob_N is not None and logprob_B is not None:
                    logprob_N[part] = logprob_B
                if any(self.wanted):
                    student.store(part, logits_BV.mul_(scale_N1[part]))
            gradient_CV = student.stored(rows)
            if grad_hidden_ND is not None:
                torch.mm(gradient_CV, head_VD[: self.vocab], out=grad_hidden_ND[rows])
            if head_gradient is not None:
                head_gradient.add(gradient_CV, hidden_ND[rows])
            if grad_bias_V is not None:
                grad_bias_V[: self.vocab] += gradient_CV.sum(0, dtype=dtype)

        return PassResult(
            loss=(weights_N * divergence_N).sum(),
            divergence_N=divergence_N,
            logprob_N=logprob_N,
            gradients=(
                grad_hidden_ND,
                None if head_gradient is None else head_gradient.result(),
                None if grad_bias_V is None else grad_bias_V.to(head_VD.dtype),
            ),
        )
