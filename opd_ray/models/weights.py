"""Are the weights in a model's files all that the model has: before it loads, and as it loads.

transformers and vLLM start whatever a file lacks with random numbers; nothing here lets that pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opd_ray.borders import border
from opd_ray.models.folder import model_folder
from opd_ray.models.weight_files import (
    WeightsError,
    check_one_source,
    listed,
    tensors_in,
    weight_files,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class WeightsCheck:
    """What was compared before a model loads."""

    compared: bool  # all names and shapes, with those of the model
    detail: str  # of what was found, or why nothing was compared


def check_weights(
    path: str, *, trust_remote_code: bool = False, vllm: bool = False
) -> WeightsCheck:
    """Hold names and shapes in the files of a model against the model that its config describes.

    The model is built without memory for its weights, and transformers' own loader says what it
    would find under which name: it knows what is tied, renamed, converted or left out on purpose.

    Args:
        path: folder, or hub name of which the cache is looked at.
        trust_remote_code: a model with code of its own is not compared.
        vllm: an engine will read the folder too.

    Raises:
        WeightsError: tensors that are missing, unknown or of another shape, by name; or see
            :func:`weight_files`.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if vllm:
        check_one_source(path)
    files = weight_files(path)
    if files is None:
        return WeightsCheck(False, "not all on this machine; compared as the model loads")
    with border(f"{path}", "correct its config.json", WeightsError):
        config = AutoConfig.from_pretrained(
            str(model_folder(path)), trust_remote_code=trust_remote_code
        )
    why = None
    if getattr(config, "quantization_config", None):
        why = "quantised"
    elif trust_remote_code and getattr(config, "auto_map", None):
        why = "of a model with code of its own"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        why = f"of a {config.model_type}, of which transformers knows no causal language model"
    if why:
        # Where transformers loads it, load_causal_lm compares it; vLLM takes it as it is.
        return WeightsCheck(False, f"{why}; names and shapes are not compared before it loads")
    found = tensors_in(files)
    with border(f"{path}", "see that config.json and weights belong together", WeightsError):
        name, differences = _dry_run(config, found)
    _refuse(path, name, differences)
    size = sum(tensor.nbytes for tensor in found.values())
    plural = "s" if len(files) > 1 else ""
    held = f"{len(found):,} tensors, {size / 1e6:,.2f} MB in {len(files)} file{plural}"
    return WeightsCheck(True, f"{held}: all of {name}")


@contextmanager
def weights_checked(path: str, *, trust_remote_code: bool = False) -> Iterator[None]:
    """A with block in which a vLLM engine loads a model, or transformers shards one.

    Neither tells all that was missing. A model that is fetched from the hub in the block is
    compared at its end.

    Raises:
        WeightsError: see :func:`check_weights`.
    """
    to_fetch = weight_files(path) is None
    if not to_fetch:
        check_weights(path, trust_remote_code=trust_remote_code, vllm=True)
    yield
    if to_fetch:
        check_weights(path, trust_remote_code=trust_remote_code, vllm=True)


def load_causal_lm(path: str, **options: Any) -> PreTrainedModel:
    """``AutoModelForCausalLM.from_pretrained``, which refuses a model with random weights.

    Args:
        path: folder or hub name.
        options: of ``from_pretrained``.

    Raises:
        WeightsError: tensors that are missing, unknown or of another shape, by name; or see
            :func:`weight_files`.
    """
    from transformers import AutoModelForCausalLM

    if "gguf_file" not in options:
        weight_files(path)
    model, differences = AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    _refuse(path, type(model).__name__, differences)
    return model


def _dry_run(
    config: PreTrainedConfig, tensors: Mapping[str, Tensor]
) -> tuple[str, Mapping[str, Any]]:
    """The model's class, and in what ``tensors`` (on the meta device) differ from its own."""
    import torch
    from transformers import AutoModelForCausalLM

    with _quiet(), torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
        _, differences = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return kind.__name__, differences


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its table and its bar: nothing is loaded, and refusals say all."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _refuse(path: str, name: str, differences: Mapping[str, Any]) -> None:
    missing, unknown = sorted(differences["missing_keys"]), sorted(differences["unexpected_keys"])
    shapes = [
        f"{tensor}: {list(held)} in the files, {list(wanted)} by config.json"
        for tensor, held, wanted in sorted(differences["mismatched_keys"])
    ]
    parts = [
        f"{len(names)} {what} ({listed(names)})"
        for names, what in (
            (missing, "missing"),
            (unknown, "unknown to the model"),
            (shapes, "of another shape"),
        )
        if names
    ]
    if parts:
        random = " (it would be random numbers)" if missing or shapes else ""
        raise WeightsError(
            f"{path}: its tensors are not those of {name}: {'; '.join(parts)}{random}; "
            f"{_remedy(missing, unknown)}"
        )


def _remedy(missing: Sequence[str], unknown: Sequence[str]) -> str:
    if missing == ["lm_head.weight"] and not unknown:
        return (
            "set tie_word_embeddings to true in its config.json if the output head is the "
            "embedding, else save the model again with its head"
        )
    if any("lora_" in name or ".base_layer." in name for name in unknown):
        return "merge its adapters (peft: merge_and_unload) before save_pretrained"
    prefix = _common_prefix(unknown)
    if prefix and {name.removeprefix(prefix) for name in unknown} & set(missing):
        return (
            f"the names begin with {prefix!r}, as those of a wrapped model do; save the model "
            "inside the wrapper with save_pretrained"
        )
    return "save the whole model again with save_pretrained, or correct its config.json"


def _common_prefix(names: Collection[str]) -> str | None:
    first = {name.partition(".")[0] for name in names}
    return f"{first.pop()}." if len(first) == 1 else None
