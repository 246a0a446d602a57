"""Memory of tensors, counted operation by operation on any device.

On ``meta``, which holds nothing, that goes for models of any size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountedTensors(TorchDispatchMode):
    """Counts the storage of tensors that operations inside it make, for as long as they live.

    Tensors from before are not in it, nor what an operation takes and gives back within itself
    (workspaces), nor what an allocator rounds up.

    Attributes:
        live: bytes now.
        peak: most bytes that there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, Callable[[], Any]]
        self._seen = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _is_tensor(tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = weakref.finalize(storage, self._freed, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _freed(self, size: int) -> None:
        self.live -= size


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)
