"""Weights in pieces that cross processes: which tensors go, and how they share flat buffers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from opd_ray.types import to_array, to_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALIGNMENT = 16  # bytes; every tensor starts at a multiple: any dtype can be viewed in place
Whole = Callable[[nn.Parameter], torch.Tensor]  # makes a whole tensor of a parameter
NamedBy = Callable[[nn.Module, Whole], Iterator[tuple[str, torch.Tensor]]]
_LAYER = re.compile(r".*?\.\d+\.")


@dataclass(frozen=True)
class WeightChunk:
    """Some named tensors in one flat buffer. Cheap to put into an object store: one array."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]  # numpy names; "uint16" holds bfloat16 bits
    shapes: tuple[tuple[int, ...], ...]
    buffer: np.ndarray  # [bytes] uint8


def named_weights(
    model: nn.Module, full: Whole = nn.Parameter.detach
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under every name it has, in the order of the layers.

    A tied output head comes twice, as the embedding and as ``lm_head.weight``: during an update
    vLLM holds the two apart, and one that does not arrive keeps its old values (on the CPU the head
    is a re-packed copy). ``named_parameters()`` alone would leave it out.

    Args:
        model: the trained model, with Hugging Face's parameter names.
        full: makes a whole tensor of a parameter. Under ZeRO stage 3 it gathers the shards, a
            collective: then every rank must iterate to the end.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, full(parameter)


def stored_weights(
    model: PreTrainedModel, full: Whole = nn.Parameter.detach, named: NamedBy | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """:func:`named_weights` as a checkpoint's files hold them, which is what vLLM reads.

    transformers joins some tensors as it loads them (the experts of a layer into one), or renames
    them. Such a model's layers are taken apart again one at a time.

    Args:
        model: with what :func:`converts_weights` asks for.
        full: see :func:`named_weights`. A rank that gets empty tensors yields them as they are.
        named: in place of :func:`named_weights`, for a model with an adapter.
    """
    weights = (named or named_weights)(model, full)
    if not converts_weights(model):
        yield from weights
        return
    # Here, since the process that steers a run imports this module, and never comes here.
    from transformers.core_model_loading import revert_weight_conversion

    for _, layer in groupby(weights, lambda pair: _layer(pair[0])):
        tensors = dict(layer)
        whole = all(tensor.numel() for tensor in tensors.values())
        yield from (revert_weight_conversion(model, tensors) if whole else tensors).items()


def converts_weights(model: nn.Module) -> bool:
    """Whether this model, as transformers loaded it, has other tensors than its files."""
    used = getattr(model, "_weight_conversions", None)
    if used is None:  # then those of its architecture count
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange

        known = get_model_conversion_mapping(model, add_legacy=False)
        used = [conversion for conversion in known if not isinstance(conversion, PrefixChange)]
    return bool(used)


def pack(
    named_tensors: Iterable[tuple[str, torch.Tensor]], chunk_bytes: int
) -> Iterator[WeightChunk]:
    """Chunks of at most ``chunk_bytes`` bytes, in order; a larger tensor is a chunk alone.

    Raises:
        ValueError: ``chunk_bytes`` is not positive.
    """
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")
    waiting: list[tuple[str, np.ndarray]] = []
    size = 0
    for name, tensor in named_tensors:
        array = to_array(tensor)
        if waiting and size + array.nbytes > chunk_bytes:
            yield _join(waiting)
            waiting, size = [], 0
        waiting.append((name, array))
        size += _aligned(array.nbytes)
    if waiting:
        yield _join(waiting)


def unpack(chunk: WeightChunk) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that :func:`pack` put into the chunk (copies where its buffer is read-only)."""
    start = 0
    for name, dtype, shape in zip(chunk.names, chunk.dtypes, chunk.shapes, strict=True):
        count = int(np.prod(shape, dtype=np.int64))
        stop = start + count * np.dtype(dtype).itemsize
        yield name, to_tensor(chunk.buffer[start:stop].view(dtype).reshape(shape))
        start = _aligned(stop)


def _layer(name: str) -> str:
    """What the names of one layer's weights begin with; nothing for those outside of layers."""
    found = _LAYER.match(name)
    return found.group() if found else ""


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _join(named_arrays: list[tuple[str, np.ndarray]]) -> WeightChunk:
    buffer = np.zeros(sum(_aligned(array.nbytes) for _, array in named_arrays), np.uint8)
    start = 0
    for _, array in named_arrays:
        buffer[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        start += _aligned(array.nbytes)
    return WeightChunk(
        names=tuple(name for name, _ in named_arrays),
        dtypes=tuple(array.dtype.name for _, array in named_arrays),
        shapes=tuple(array.shape for _, array in named_arrays),
        buffer=buffer,
    )
