"""The student's adapter (LoRA, by peft): what is trained of it, and the two ways it leaves.

Beside the frozen weight W ``[out, in]`` of every target layer stand A ``[rank, in]`` and B
``[out, rank]``; the layer multiplies with W + scale x B A. B begins at zero, so the student begins
as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from actors.weights.chunks import Whole
from opd_ray.config.lora import LoraSettings
from opd_ray.models.lora_targets import layers_of, targets
from opd_ray.seeds import derive_seed

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

_NAME = "default"  # of the adapter, in peft's names of its tensors
_BASE = ".base_layer"  # in its names of what was there before
_OURS = ".lora_"  # in those of A and B


def add_adapter(model: nn.Module, lora: LoraSettings, seed: int) -> None:
    """Freeze a model and put an adapter into it.

    Args:
        model: a causal language model; with ZeRO-3 its weights are sharded already.
        lora: rank, scale and layers.
        seed: of the run, from which the first matrix of every layer is drawn.
    """
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    # In full: peft would take "q_proj" for one outside of the transformer's layers too.
    names = targets(layers_of(model), lora.target_modules)
    inject_adapter_in_model(_peft_config(lora, names), model, adapter_name=_NAME)
    for name, layer in _adapted_layers(model).items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
        first, _ = _matrices(layer)
        # As peft does: uniform, with a third of the variance that keeps that of the inputs.
        bound = math.sqrt(1.0 / first.shape[1])
        drawn = torch.empty(first.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            first.copy_(drawn)


def adapter_weights(model: nn.Module, whole: Whole) -> Iterator[tuple[str, Tensor]]:
    """A and B of every layer, by the names that peft gives them in its files."""
    for name, parameter in model.named_parameters():
        if of_adapter(name):
            yield f"base_model.model.{name.replace(f'.{_NAME}.', '.')}", whole(parameter)


def merged_weights(model: nn.Module, whole: Whole) -> Iterator[tuple[str, Tensor]]:
    """As :func:`actors.weights.chunks.named_weights` of a student that is trained whole.

    Sums are made in float32, and rounded to the format of the weights.
    """
    layers = _adapted_layers(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if of_adapter(name):
            continue
        weight = whole(parameter)
        owner, _, leaf = name.rpartition(f"{_BASE}.")
        if layer := layers.get(owner) if leaf == "weight" else None:
            first, second = map(whole, _matrices(layer))
            if weight.numel():
                change = second.float() @ first.float() * layer.scaling[_NAME]
                weight = (weight.float() + change).to(weight.dtype)
        yield plain_name(name), weight


def of_adapter(name: str) -> bool:
    """Whether a parameter of a model with an adapter is the adapter's."""
    return _OURS in name


def plain_name(name: str) -> str:
    """What a parameter that is not the adapter's is called in the model without one."""
    return name.replace(f"{_BASE}.", ".")


def adapter_config(model: nn.Module, lora: LoraSettings, base: str) -> dict[str, Any]:
    """peft's adapter_config.json of a model with an adapter over the weights at ``base``."""
    layers = sorted({name.rpartition(".")[2] for name in _adapted_layers(model)})
    config = _peft_config(lora, layers)
    config.base_model_name_or_path = base
    config.inference_mode = True
    return {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
    }


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """A with block in which a model computes with its frozen weights alone."""
    layers = _adapted_layers(model).values()
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    from peft.tuners.lora import LoraLayer

    return {name: one for name, one in model.named_modules() if isinstance(one, LoraLayer)}


def _matrices(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B of a layer."""
    first, second = layer.lora_A[_NAME], layer.lora_B[_NAME]
    return cast(nn.Parameter, first.weight), cast(nn.Parameter, second.weight)


def _peft_config(lora: LoraSettings, layers: Sequence[str]) -> LoraConfig:
    from peft import LoraConfig

    alpha = lora.scale * lora.rank
    return LoraConfig(
        r=lora.rank,
        # An integer to peft's types, and a factor to its code and vLLM's.
        lora_alpha=int(alpha) if alpha.is_integer() else cast(int, alpha),
        target_modules=list(layers),
        task_type="CAUSAL_LM",
    )
