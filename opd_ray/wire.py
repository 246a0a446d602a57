"""Tensors as they cross processes: numpy has no bfloat16, so its bits travel as uint16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def to_wire(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values as a numpy array; bfloat16 becomes its bits as uint16, same shape."""
    import torch

    tensor = tensor.detach().contiguous().cpu()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def from_wire(array: np.ndarray) -> torch.Tensor:
    """The tensor that :func:`to_wire` took apart; a read-only array is copied, others shared."""
    import torch

    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
