"""Shapes from config.json against the parameters of real (tiny) models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd_ray.models.shape import ModelShape, ModelShapeError, config_json, read_shape

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 16, "tie_word_embeddings": False, "attention_bias": True}),
        ("qwen3", {"num_attention_heads": 4}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 10, "num_key_value_heads": 1}),
    ],
)
def test_parameters_are_those_of_the_real_model(
    kind: str, options: dict[str, object], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SIZES, **options})
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    shape = read_shape(str(tmp_path))
    assert shape is not None
    distinct = {id(p): p.numel() for p in model.parameters()}
    assert shape.parameters == sum(distinct.values())
    assert shape.layer_parameters == sum(p.numel() for p in model.model.layers[0].parameters())


def test_known_models_by_hand() -> None:
    """Published counts: Qwen3-0.6B has 596,049,920 parameters, Llama-3.1-8B 8,030,261,248."""
    qwen = ModelShape.from_config(
        {
            "model_type": "qwen3",
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
        }
    )
    assert qwen.parameters == 596_049_920
    llama = ModelShape.from_config(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        }
    )
    assert llama.parameters == 8_030_261_248
    assert llama.kv_bytes_per_token(2) == 2 * 32 * 8 * 128 * 2


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelShapeError, match=r"holds no config\.json"):
        read_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelShapeError, match="cannot be read"):
        config_json(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ModelShapeError, match=r"'mamba' has no known shape; known are llama"):
        read_shape(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(ModelShapeError, match="has no num_attention_heads"):
        read_shape(str(tmp_path))
    with pytest.raises(ModelShapeError, match="no such folder"):
        read_shape(str(tmp_path / "no" / "model" / "here"))


def test_an_adapter_in_place_of_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelShapeError, match=r"no config\.json; it is an adapter .* merge it"):
        config_json(str(tmp_path))


def test_a_hub_model_that_is_not_here_is_unknown() -> None:
    assert read_shape("no-such-owner/no-such-model") is None
