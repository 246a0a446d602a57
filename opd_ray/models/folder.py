"""What a model folder holds beside its weights: it goes with every checkpoint and export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.errors import InputError
from opd_ray.whole_file import write_whole

ADAPTER = "adapter_config.json"
_CONFIG = "config.json"
# Weights of any library, and what training leaves; none of them describes the model.
_LEFT_OUT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz"}
)
_LEFT_OUT_NAMES = frozenset({"trainer_state.json", "run.lock"})
# Tells of the old weights: where they come from and how good they are.
_MODEL_CARD = "README"
# The one folder that transformers looks into beside the model's own.
_TEMPLATES = "additional_chat_templates"


def model_folder(path: str) -> Path | None:
    """The folder of a model, in the cache if ``path`` is a hub name; None: not on this machine.

    Raises:
        InputError: neither a folder nor a name that a hub model can have.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, _CONFIG)
    except HFValidationError:
        raise InputError(f"{path}: no such folder, and no name of a hub model") from None
    return Path(cached).parent if isinstance(cached, str) else None


def adapter_in(folder: Path) -> str | None:
    """What a folder holds that has an adapter, alone or beside a model, and what to do; or None.

    Raises:
        InputError: its config cannot be read.
    """
    file = folder / ADAPTER
    if not file.is_file():
        return None
    with border(f"{file}", "copy or download it again"):
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    of = f" of the model {base!r}" if base else ""
    return (
        f"an adapter ({ADAPTER}){of}, which would not be loaded; merge it into its base (peft: "
        "merge_and_unload, then save_pretrained) and give the folder of the result"
    )


@dataclass(frozen=True)
class ModelFiles:
    """Files of a model folder, byte for byte, by their path in it.

    Configs, tokenizer, chat templates, code of the model's own (``*.py``) and licences; no weights
    and no README.
    """

    contents: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> ModelFiles:
        """Those of ``folder``.

        Raises:
            InputError: it cannot be read, or holds no config.json.
        """
        try:
            found = [*folder.iterdir()]
            if (folder / _TEMPLATES).is_dir():
                found += (folder / _TEMPLATES).iterdir()
            contents = {
                str(file.relative_to(folder)): file.read_bytes()
                for file in sorted(found)
                if file.is_file() and _describes(file)
            }
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be read ({error.strerror}); give the folder of a model"
            ) from error
        if _CONFIG not in contents:
            raise InputError(f"{folder}: the folder holds no config.json")
        return cls(contents)

    def write(self, folder: Path) -> None:
        """Write all of them into ``folder``.

        Raises:
            WriteError: one cannot be written.
        """
        for name, content in self.contents.items():
            write_whole(folder / name, content)

    def saved_as(self, made: dict[str, Any]) -> ModelFiles:
        """The files with a config.json for weights that were saved anew.

        The config stays as it is but for the number format, and a quantization that the weights no
        longer have.

        Args:
            made: the config that the trained model has by itself. It is taken whole where the model
                was a part of another one (the text model of one that sees, say).
        """
        content = self.contents[_CONFIG]
        config = json.loads(content)
        changed = dict(config)
        for key in ("dtype", "torch_dtype"):
            if key in config:
                changed[key] = made.get("dtype")
        if "quantization_config" not in made:
            changed.pop("quantization_config", None)
        if config.get("model_type") != made.get("model_type"):
            changed = made
        if changed != config:
            content = (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()
        return ModelFiles({**self.contents, _CONFIG: content})


def _describes(file: Path) -> bool:
    return not (
        file.suffix in _LEFT_OUT_SUFFIXES
        or file.name.endswith(".index.json")
        or file.name in _LEFT_OUT_NAMES
        or file.name.startswith((".", _MODEL_CARD))
    )
