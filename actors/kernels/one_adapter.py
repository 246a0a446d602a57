"""vLLM's adapters on CPUs where all requests have the same one: two matrix products.

vLLM 0.32 allows for another adapter for every token there: it gathers A and B once a token, and
multiplies row by row. Importing this module puts :class:`OneAdapter` in the place of its class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.platforms.cpu import CpuPlatform


class OneAdapter(PunicaWrapperCPU):
    """Of an engine with room for one adapter (``max_loras = 1``); sums are made in float32."""

    def _apply_shrink(self, y: Tensor, x: Tensor, w_t_all: Tensor, scale: float) -> None:
        """y ``[T, rank]`` <- scale x A x, of float32."""
        if self.no_lora:
            return
        first = w_t_all[0].view(-1, w_t_all.shape[-1])
        torch.mm(x.to(y.dtype), first.to(y.dtype).T, out=y[:, : len(first)])
        y.mul_(scale)

    def _apply_expand(
        self,
        y: Tensor,
        x: Tensor,
        w_t_all: Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        """y ``[T, out]``, some of its columns <- B x, or that added."""
        if self.no_lora:
            return
        second = w_t_all[0].view(-1, w_t_all.shape[-1])[:y_slice_size]
        change = torch.mm(x, second.to(x.dtype).T)
        columns = y[:, y_offset : y_offset + y_slice_size]
        columns.copy_(columns + change if add_inputs else change)


def _wrapper(cls: type[CpuPlatform]) -> str:
    return f"{OneAdapter.__module__}.{OneAdapter.__qualname__}"


if current_platform.is_cpu():
    CpuPlatform.get_punica_wrapper = classmethod(_wrapper)
