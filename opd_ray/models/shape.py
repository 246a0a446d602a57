"""A causal language model's shape from its config.json alone: parameters and bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from opd_ray.errors import InputError, OpdError
from opd_ray.models.context import UNLIMITED, context_length
from opd_ray.models.folder import adapter_in, model_folder

KNOWN_TYPES = ("llama", "qwen2", "qwen3")
FLOAT32_BYTES = 4
# Tokens that a vLLM engine on the CPU reserves at once: the ``block_size`` that actors give it.
KV_BLOCK_TOKENS = 32


class ModelShapeError(OpdError, ValueError):
    """A config.json that cannot be read, or of an architecture that is not known here."""


# Keys of a config that are numbers of something.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class ModelShape:
    """The sizes from which parameter counts and memory follow."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int  # as scaled positions lengthen it
    tied: bool  # input embedding and output head are one tensor
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> ModelShape:
        """The shape that a Hugging Face config describes.

        Raises:
            ModelShapeError: the architecture is not one of KNOWN_TYPES, or a size is missing.
        """
        kind = config.get("model_type")
        if kind not in KNOWN_TYPES:
            raise ModelShapeError(
                f"{source}: model_type {kind!r} has no known shape; known are "
                f"{', '.join(KNOWN_TYPES)}"
            )
        for key in _SIZES:
            size = config.get(key)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ModelShapeError(f"{source}: {key} = {size!r}; give a whole number above 0")
        try:
            heads = config["num_attention_heads"]
            hidden = config["hidden_size"]
            biased = bool(config.get("attention_bias", False))
            shape = cls(
                model_type=kind,
                vocab_size=config["vocab_size"],
                hidden_size=hidden,
                intermediate_size=config["intermediate_size"],
                layers=config["num_hidden_layers"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads),
                context_length=context_length(config),
                tied=bool(config.get("tie_word_embeddings", False)),
                qkv_bias=kind == "qwen2" or biased,
                output_bias=kind != "qwen2" and biased,
                mlp_bias=kind == "llama" and bool(config.get("mlp_bias", False)),
                qk_norm=kind == "qwen3",
            )
        except KeyError as error:
            raise ModelShapeError(f"{source}: has no {error.args[0]}") from None
        if shape.context_length == UNLIMITED:
            raise ModelShapeError(f"{source}: has no max_position_embeddings")
        return shape

    @property
    def embedding_parameters(self) -> int:
        """Of the input embedding, and as many again of an output head that is not tied to it."""
        return self.vocab_size * self.hidden_size

    @property
    def layer_parameters(self) -> int:
        """Of one transformer layer: attention, gated MLP, two norms."""
        hidden, wide = self.hidden_size, self.intermediate_size
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * hidden * query + 2 * hidden * key
        attention += (query + 2 * key) * self.qkv_bias + hidden * self.output_bias
        attention += 2 * self.head_dim * self.qk_norm
        mlp = 3 * hidden * wide + (2 * wide + hidden) * self.mlp_bias
        return attention + mlp + 2 * hidden

    @property
    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one transformer layer, by their names."""
        hidden, wide = self.hidden_size, self.intermediate_size
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (hidden, query),
            "k_proj": (hidden, key),
            "v_proj": (hidden, key),
            "o_proj": (query, hidden),
            "gate_proj": (hidden, wide),
            "up_proj": (hidden, wide),
            "down_proj": (wide, hidden),
        }

    @property
    def layer_matrix_parameters(self) -> int:
        """Of the matrices of one transformer layer, without biases and norms."""
        return sum(inputs * outputs for inputs, outputs in self.layer_matrices.values())

    def adapter_parameters(self, rank: int, names: Sequence[str] = ()) -> int:
        """Of an adapter of that rank for the named matrices of every layer, or for all of them."""
        sizes = [size for name, size in self.layer_matrices.items() if not names or name in names]
        return self.layers * rank * sum(map(sum, sizes))

    @property
    def parameters(self) -> int:
        """All distinct parameters; a tied head counts once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden_size

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes

    def kv_cache_bytes(self, tokens: int, element_bytes: int, split: int = 1) -> int:
        """The smallest KV cache in which an engine on the CPU takes a text of so many tokens.

        Whole blocks, and one that vLLM keeps for itself; of each process if it is ``split``.
        """
        blocks = -(-tokens // KV_BLOCK_TOKENS) + 1
        shares = min(split, self.kv_heads)
        return blocks * KV_BLOCK_TOKENS * self.kv_bytes_per_token(element_bytes) // shares

    def layer_activation_bytes(self, element_bytes: int) -> int:
        """Bytes that one layer keeps for its backward pass, per token.

        Of a norm its input, in float32 whatever the format, and what it is scaled to; what leaves
        the norms of the layer goes into matrix products, which keep it. Of attention query, key,
        value and output; in float32 keys and values are repeated for every query head. Of the MLP
        both branches, the activation and the product.
        """
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        scaled = FLOAT32_BYTES + element_bytes
        norms = 2 * self.hidden_size * (scaled + element_bytes)
        norms += (query + key) * scaled * self.qk_norm
        repeated = 2 * (query - key) * (element_bytes == FLOAT32_BYTES)
        attention = 2 * query + 2 * key + repeated
        return norms + (attention + 4 * self.intermediate_size) * element_bytes


def config_json(path: str) -> dict[str, Any] | None:
    """The config.json of a model folder, or of a hub model whose config this machine has cached.

    None when it is not on this machine; nothing is downloaded.

    Raises:
        ModelShapeError: a folder without a readable config.json.
    """
    try:
        folder = model_folder(path)
    except InputError as error:
        raise ModelShapeError(str(error)) from None
    if folder is None:
        return None
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        adapter = adapter_in(folder)
        what = f"; it is {adapter}" if adapter else ""
        raise ModelShapeError(f"{path}: the folder holds no config.json{what}") from None
    except (OSError, ValueError) as error:
        raise ModelShapeError(f"{file}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelShapeError(f"{file}: does not hold an object")
    return config


def known_names() -> list[str]:
    """Hub names of the models whose sizes come with this package."""
    return sorted(_known_files())


def known_config(name: str) -> dict[str, Any] | None:
    """The sizes in the config.json of a hub model that this package knows; None of any other."""
    file = _known_files().get(name)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def _known_files() -> dict[str, Path]:
    shapes = Path(str(resources.files("opd_ray.models"))) / "shapes"
    files = shapes.glob("*/*.json")
    return {file.relative_to(shapes).as_posix().removesuffix(".json"): file for file in files}


def described_model(path: str) -> dict[str, Any] | None:
    """The config.json of the model at ``path``, else what is known of its hub name.

    None when neither is on this machine.

    Raises:
        ModelShapeError: a folder without a readable config.json.
    """
    return config_json(path) or known_config(path)


def read_shape(path: str) -> ModelShape | None:
    """The shape of the model at ``path``; see :func:`described_model`.

    Raises:
        ModelShapeError: likewise, or of an architecture that is not known here.
    """
    config = described_model(path)
    return None if config is None else ModelShape.from_config(config, f"{path}/config.json")
