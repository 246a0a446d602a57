"""vLLM's compiled RMS norms on a CPU, where vLLM itself runs them as a dozen PyTorch operations.

Its CPU build has the kernels, but registers them for GPUs alone. Here they become implementations
of ``vllm.ir.ops.rms_norm`` and ``fused_add_rms_norm`` under a name that an engine can ask for.
They compute in float32 and round once; the PyTorch operations round before the weight too.
Every worker must import this module before it is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import ir
from vllm.platforms import current_platform

_PROVIDER = "opd_ray_cpu"
_LANES = 8  # the kernels take rows in whole vectors

# Argument of vLLM's ``EngineArgs``: these first, PyTorch's where they do not apply.
CPU_KERNEL_CONFIG: dict[str, Any] = {
    "ir_op_priority": {"rms_norm": [_PROVIDER], "fused_add_rms_norm": [_PROVIDER]}
}

current_platform.import_kernels()
_SUPPORTED = current_platform.is_cpu() and all(
    hasattr(torch.ops._C, name) for name in ("rms_norm", "fused_add_rms_norm")
)


def _fits(x: Tensor, weight: Tensor | None, variance_size: int | None) -> bool:
    return (
        variance_size is None
        and x.shape[-1] % _LANES == 0
        and (weight is None or weight.dtype == x.dtype)
    )


@ir.ops.rms_norm.register_impl(
    _PROVIDER,
    supported=_SUPPORTED,
    supports_args=lambda x, weight, epsilon, variance_size=None: _fits(x, weight, variance_size),
)
def rms_norm(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    """As ``vllm.ir.ops.rms_norm``."""
    x = x.contiguous()  # the kernel takes no strides; heads are cut out of a wider product
    output = torch.empty_like(x)
    torch.ops._C.rms_norm(output, x, weight, epsilon)
    return output


@ir.ops.fused_add_rms_norm.register_impl(
    _PROVIDER,
    supported=_SUPPORTED,
    supports_args=lambda x, x_residual, weight, epsilon, variance_size=None: (
        _fits(x, weight, variance_size) and x.is_contiguous() and x_residual.is_contiguous()
    ),
    inplace=True,
)
def fused_add_rms_norm(
    x: Tensor,
    x_residual: Tensor,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``vllm.ir.ops.fused_add_rms_norm``, in place."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
