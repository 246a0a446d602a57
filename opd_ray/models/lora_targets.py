"""Which linear layers of a model an adapter can be for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from opd_ray.borders import border
from opd_ray.models.folder import model_folder
from opd_ray.models.weight_files import WeightsError

if TYPE_CHECKING:
    from torch import nn

# Whose layers an adapter may be for: model.layers.0.self_attn.q_proj.
_OF_A_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_out")


def linear_layers(path: str, *, trust_remote_code: bool = False) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers of a model's transformer layers, by their full names.

    Empty for a model whose files are not on this machine.

    Raises:
        WeightsError: its config.json describes no model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = model_folder(path)
    if folder is None:
        return {}
    with border(f"{path}", "correct its config.json", WeightsError), torch.device("meta"):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return {
        name: (layer.in_features, layer.out_features) for name, layer in layers_of(model).items()
    }


def layers_of(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a model's transformer layers, by their full names."""
    from torch import nn

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _OF_A_LAYER.search(name)
    }


def targets(layers: Collection[str], wanted: Sequence[str]) -> list[str]:
    """The full names of those that are asked for by the last parts of their names; none: all."""
    return [name for name in layers if not wanted or _last(name) in wanted]


def target_problems(layers: Mapping[str, object], wanted: Sequence[str]) -> Iterator[str]:
    """What is asked for and is no layer of the model; of one whose layers are unknown, nothing."""
    if not layers:
        return
    known = sorted({_last(name) for name in layers})
    for name in wanted:
        if name in known:
            continue
        if name in _EMBEDDINGS:
            yield (
                f"{name} is an embedding or the output head, and the loss computes with the head's "
                f"own weights; leave it out ({', '.join(known)} can be named)"
            )
        else:
            yield f"the student has no linear layer {name}; it has {', '.join(known)}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
