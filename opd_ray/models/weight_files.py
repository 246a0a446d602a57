"""Which files hold a model's weights, and the names and shapes in them; no weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_ray.borders import border
from opd_ray.errors import OpdError
from opd_ray.models.folder import ADAPTER, adapter_in, model_folder

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# In the order in which transformers looks for them.
_SOURCES = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
_OTHER_FORMATS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_NAMED = 6  # of a list in a message
_POINTER = b"version https://git-lfs"


class WeightsError(OpdError, ValueError):
    """Weights that are not there, cannot be read, or are not those of the model."""


class NoWeights(WeightsError):
    """A folder that describes a model and holds no weights."""


def weight_files(path: str) -> list[Path] | None:
    """The files from which transformers loads the model at ``path``.

    None where that is a hub name and not all of them are in the cache: loading will fetch them.

    Raises:
        NoWeights: a folder without any.
        InputError: neither a folder nor a name that a hub model can have.
        WeightsError: an adapter in place of a model, an index that cannot be read, or shards that
            are not there.
    """
    folder = model_folder(path)
    if folder is None:
        return None
    fetched = not Path(path).is_dir()
    if not fetched and (adapter := adapter_in(folder)):
        raise WeightsError(f"{path}: holds {adapter}, without {ADAPTER}")
    source = next((folder / name for name in _SOURCES if (folder / name).is_file()), None)
    if source is None:
        if fetched:
            return None
        others = listed(sorted(p.name for p in folder.glob("*") if p.suffix in _OTHER_FORMATS))
        found = f"; there is {others}, which is of another format" if others else ""
        raise NoWeights(
            f"{path}: holds no weights ({SINGLE}, or its shards with {INDEX}){found}; give the "
            "folder that save_pretrained wrote"
        )
    if source.suffix != ".json":
        return [source]
    shards = _shards(source)
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent and fetched:
        return None
    if absent:
        raise WeightsError(
            f"{source}: names {len(shards)} files, of which {len(absent)} are not there "
            f"({listed(absent)}); copy or download the model again, whole"
        )
    return shards


def check_one_source(path: str) -> None:
    """Refuse a folder in which vLLM would read other files than transformers.

    Raises:
        WeightsError: naming both choices.
    """
    folder = Path(path)
    safetensors = {file.name for file in folder.glob("*.safetensors")}
    # Mistral's own files are what vLLM takes alone where there are any.
    if SINGLE not in safetensors or any(name.startswith("consolidated") for name in safetensors):
        return
    index = folder / INDEX
    if index.is_file():
        taken = {shard.name for shard in _shards(index)}
        why = f"{INDEX}, by which vLLM takes {listed(sorted(taken))}"
    else:
        taken = safetensors
        why = f"{listed(sorted(taken - {SINGLE}))}, which vLLM loads with it"
    if taken != {SINGLE}:
        raise WeightsError(
            f"{path}: transformers takes {SINGLE} alone, but beside it is {why}: they would be two "
            "models; leave one of them in the folder"
        )


def tensors_in(files: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor in ``files`` by its name there, on the meta device: shapes and formats.

    Raises:
        WeightsError: a file that cannot be read, is cut off, or holds something else.
    """
    from transformers.modeling_utils import load_state_dict

    found: dict[str, Tensor] = {}
    for file in files:
        with border(f"{file}", "make it readable", WeightsError):
            remedy = _remedy(file)
        with border(f"{file}", remedy, WeightsError):
            found |= _checked(file, load_state_dict(file, map_location="meta"))
    return found


def _checked(file: Path, held: Mapping[str, Any]) -> Mapping[str, Tensor]:
    import torch

    odd = [name for name, value in held.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise WeightsError(
            f"{file}: holds no tensor but a {type(held[odd[0]]).__name__} under {odd[0]!r}: this "
            "is a training state; give the folder that save_pretrained wrote"
        )
    return held


def _remedy(file: Path) -> str:
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            return "it is Git LFS's pointer to the weights: run `git lfs pull` in its folder"
    return f"it has {file.stat().st_size:,} bytes and is not whole: copy or download it again"


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each once."""
    with border(f"{index}", "copy or download it again", WeightsError):
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [index.parent / name for name in sorted(set(weight_map.values()))]


def listed(names: Sequence[str]) -> str:
    """The first of them, for a message, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
