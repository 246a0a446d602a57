"""Models with weights that are missing, renamed or strange, for tests that see them refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from opd_ray.models.pairs.demo import pair_folder

Tensors = dict[str, torch.Tensor]

DOWN = "model.layers.0.mlp.down_proj.weight"
UP = "model.layers.3.mlp.up_proj.weight"


def demo_copy(
    folder: Path, change: Callable[[Tensors], Tensors] | None = None, *, of: str = "teacher"
) -> Path:
    """A copy of the demo's ``of`` in ``folder``; ``change`` says what its weights become."""
    shutil.copytree(pair_folder() / of, folder)
    return folder if change is None else change_weights(folder, change)


def change_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Write what ``change`` makes of a model's weights in place of them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    save_file(change(tensors), file, metadata={"format": "pt"})
    return folder


def without(*names: str) -> Callable[[Tensors], Tensors]:
    """Deletes tensors."""
    return lambda tensors: {name: t for name, t in tensors.items() if name not in names}


def wrapped(tensors: Tensors) -> Tensors:
    """The names that a module around the model gives."""
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def set_config(folder: Path, **values: object) -> Path:
    """Change keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def sharded(folder: Path) -> Path:
    """Two files and an index in place of one."""
    single = folder / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
