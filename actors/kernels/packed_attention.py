"""Attention of packed texts, as a transformers attention function.

The texts lie as :mod:`opd_ray.batching.packing` says.

Every segment attends to itself and to its ancestors, by PyTorch's scaled dot product attention,
whose kernels for causal attention serve wherever no sliding window is shorter than the text. A
model loaded with ``attn_implementation=PACKED`` takes the segments as a keyword of its forward
pass, which transformers hands through to here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from actors.kernels.product_attention import ProductAttention
from opd_ray.batching.packing import MIN_SHARED, Packing, Segment, pack
from opd_ray.borders import first_line
from opd_ray.errors import RunError

PACKED = "opd_ray_packed"

# What other models' attention does beyond the dot product.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
_LARGEST_CHANGE = 0.05  # relative
# transformers' maker of such masks, which the code of a model imports that has them.
_WINDOW_MASK = "create_sliding_window_causal_mask"


class UnfitModel(RunError):
    """A model that is more than packed attention, and a head on its last hidden states."""


def packed_row(packing: Packing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and positions of a row, ``[1, T]``."""
    return (
        torch.from_numpy(packing.ids_T)[None].to(device),
        torch.from_numpy(packing.positions_T)[None].to(device),
    )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: tuple[Segment, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """See transformers' ``AttentionInterface``.

    Args:
        module: the attention layer.
        query: [1, H, T, F].
        key: [1, G, T, F], and so ``value``.
        attention_mask: ignored; transformers makes none for this function.
        dropout: of the attention weights; only 0.
        scaling: of the products; None: 1 / sqrt(F).
        sliding_window: how many positions a token sees, its own included; None: as many as the
            model's configuration says (some models tell their mask alone, which is not made here).
        segments: of the row.
        kwargs: of other attention functions.

    Returns:
        [1, T, H, F], and no attention weights.

    Raises:
        UnfitModel: the model asks for more than the dot product, drops ``segments``, or attends
            within chunks.
    """
    extra = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    layer = _layer_type(module)
    if extra or dropout or segments is None or layer == "chunked_attention":
        reason = f"has {extra[0]}" if extra else "has dropout" if dropout else "takes no segments"
        if layer == "chunked_attention":
            reason = "sees the chunk that a token is in, and nothing before it"
        raise UnfitModel(f"the attention of {type(module).__name__} {reason}")
    if sliding_window is None:
        sliding_window = _masked_window(module, layer)
    lengths = [segment.tokens for segment in segments]
    # Split, not sliced: the gradients of slices would each be as large as the row.
    queries, keys, values = (t.split(lengths, dim=2) for t in (query, key, value))
    number = {segment.start: i for i, segment in enumerate(segments)}
    outputs = []
    for segment, own in zip(segments, queries, strict=True):
        chain = [number[part.start] for part in (*segment.ancestors, segment)]
        if len(chain) == 1:
            k, v = keys[chain[0]], values[chain[0]]
        else:
            k = torch.cat([keys[i] for i in chain], dim=2)
            v = torch.cat([values[i] for i in chain], dim=2)
        outputs.append(_attend(own, k, v, scaling, sliding_window))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _layer_type(module: nn.Module) -> str | None:
    """What the model's configuration calls the attention of this layer, if anything."""
    types = getattr(getattr(module, "config", None), "layer_types", None)
    index = getattr(module, "layer_idx", None)
    return None if types is None or index is None else types[index]


def _masked_window(module: nn.Module, layer: str | None) -> int | None:
    """The sliding window of a layer whose model tells its mask of it, not its attention."""
    if layer is None:
        # One mask for all layers. Other models may carry the key without a use for it.
        masked = hasattr(sys.modules[type(module).__module__], _WINDOW_MASK)
    else:
        masked = layer == "sliding_attention"
    return getattr(getattr(module, "config", None), "sliding_window", None) if masked else None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """One segment's attention, ``[1, H, L, F]``, to the U positions up to its end."""
    size, positions = query.shape[-1], key.shape[2]
    all_seen = window is None or positions <= window
    if all_seen and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        scale = size**-0.5 if scaling is None else scaling
        return ProductAttention.apply(query[0], key[0], value[0], scale)[None]
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        **_visible(query.shape[2], positions, window, query.device),
    )


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> dict[str, Any]:
    """The last ``queries`` of ``keys`` positions see themselves and what comes before."""
    if window is not None and keys > window:
        key_U = torch.arange(keys, device=device)
        query_L1 = key_U[keys - queries :, None]
        return {"attn_mask": (key_U <= query_L1) & (key_U > query_L1 - window)}
    if queries == keys:
        return {"is_causal": True}
    return {"attn_mask": causal_lower_right(queries, keys)}


AttentionInterface.register(PACKED, packed_attention)


def check_model(
    logits_of: Callable[[Packing], tuple[Tensor, Tensor]], vocab_size: int, dtype: torch.dtype
) -> None:
    """Compare two ways to the logits, and those of a text beside two different ones.

    Args:
        logits_of: the model's own logits of a row, and what its output head makes of its last
            hidden states; ``[T, V]`` each.
        vocab_size: token ids lie below it.
        dtype: of the weights, which bounds how far the two ways may be apart.

    Raises:
        UnfitModel: the model scales or caps its logits, layers look at neighbours in the row past
            the attention or are not told of the segments, or weights are no numbers.
    """
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-4  # relative to the largest logit

    def compared(packing: Packing) -> Tensor:
        own_TV, ours_TV = (logits_TV.float() for logits_TV in logits_of(packing))
        error, largest = float((own_TV - ours_TV).abs().max()), float(own_TV.abs().max())
        if not math.isfinite(error):
            name = str(dtype).removeprefix("torch.")
            raise UnfitModel(f"its logits are NaN or infinite in {name}; are its weights whole?")
        if error > tolerance * largest:
            raise UnfitModel(
                "its logits are not its output head's projection of its last hidden states (they "
                f"differ by {error / largest:.2g} of the largest): the model scales or caps them"
            )
        return own_TV

    with torch.no_grad():
        _check_packing(compared, vocab_size)


def _check_packing(logits_of: Callable[[Packing], Tensor], vocab_size: int) -> None:
    """Change one of two packed texts, and refuse a model whose logits of the other change too."""
    beginning = np.arange(MIN_SHARED + 2)
    endings = ([3, 1, 4, 1, 5, 9], [6, 5, 3, 5]), ([3, 7, 0, 2, 8, 2], [6, 8, 7, 1])
    texts, others = ([np.append(beginning, e) % vocab_size for e in pair] for pair in endings)
    try:
        logits_TV = logits_of(pack(texts))
    except (TypeError, AttributeError, KeyError) as error:
        if "'segments'" not in str(error):
            raise UnfitModel(
                "its forward pass does not take packed texts as transformers' decoders do "
                f"({first_line(error)})"
            ) from error
        raise UnfitModel(
            "the model's forward pass hands no keywords on to its attention, as models on "
            "transformers' AttentionInterface do"
        ) from error
    for kept in range(2):
        packing = pack([text if i == kept else others[i] for i, text in enumerate(texts)])
        own = packing.places[kept][len(beginning) :]
        change = (logits_of(packing)[own] - logits_TV[own]).abs().mean(-1).max()
        # Not 0: the products of mixtures of experts depend on all their tokens in rounding.
        if change > _LARGEST_CHANGE * logits_TV[own].abs().mean():
            raise UnfitModel(
                "the logits of a text depend on the text beside it in the row (they change by "
                f"{float(change):.2g}): layers of the model see their neighbours"
            )
