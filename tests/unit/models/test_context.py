"""Context lengths worked out by hand for every kind of scaled positions, in every spelling."""

from __future__ import annotations

from typing import Any

import pytest

from opd_ray.models.context import (
    UNLIMITED,
    context_length,
    context_remark,
    engine_overrides,
    unknown_rope,
)

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0], "long_factor": [2.0]}

# config without max_position_embeddings = 256, its length
TABLE: list[tuple[dict[str, Any], int]] = [
    ({}, 256),
    ({"rope_scaling": None}, 256),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 256),
    # YaRN: factor x original, whatever max_position_embeddings says.
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 1024),
    ({"rope_scaling": {"type": "yarn", "factor": 4}}, 1024),
    (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 256,
            }
        },
        1024,
    ),
    (
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 200,
            }
        },
        800,
    ),
    (
        {
            "rope_parameters": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        256,
    ),
    (
        {
            "rope_parameters": {"rope_type": "yarn", "factor": 2.5},
            "original_max_position_embeddings": 128,
        },
        320,
    ),
    # The place outside counts where both are there, as in transformers.
    (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 64,
            },
            "original_max_position_embeddings": 256,
        },
        512,
    ),
    # DeepSeek: 4096 x 40 is what max_position_embeddings says.
    (
        {
            "max_position_embeddings": 163840,
            "rope_scaling": {
                "type": "yarn",
                "factor": 40,
                "original_max_position_embeddings": 4096,
            },
        },
        163840,
    ),
    # Qwen3 by its README, which leaves max_position_embeddings as it is.
    (
        {
            "max_position_embeddings": 40960,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
        131072,
    ),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 512),
    ({"rope_parameters": {"rope_type": "linear", "factor": 3}}, 768),
    ({"rope_scaling": {"type": "linear", "factor": None}}, 256),
    ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, 512),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 256),
    (
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "llama3",
                "original_max_position_embeddings": 8192,
                **LLAMA3,
            },
        },
        131072,
    ),
    (
        {
            "rope_scaling": {
                "rope_type": "longrope",
                "original_max_position_embeddings": 64,
                **LONG,
            }
        },
        64,
    ),
    # Phi-3: the older name, and the length outside.
    (
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "su", **LONG},
        },
        4096,
    ),
    # Both spellings: the older one counts, as in transformers.
    (
        {
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
        },
        512,
    ),
    # Parameters of their own for each kind of layers; None: layers without rotary positions.
    (
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default"},
                "full_attention": {"rope_type": "yarn", "factor": 4.0},
            }
        },
        1024,
    ),
    (
        {
            "rope_parameters": {
                "sliding_attention": None,
                "full_attention": {"rope_type": "linear", "factor": 2.0},
            }
        },
        512,
    ),
    # Gemma 3 writes the scaled length down.
    (
        {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        256,
    ),
    # Other names of the length; the smallest counts, model_max_length before all.
    ({"seq_length": 128}, 128),
    ({"seq_length": 512}, 256),
    ({"model_max_length": 1000}, 1000),
    ({"max_position_embeddings": None, "n_positions": 77}, 77),
    ({"max_position_embeddings": None}, UNLIMITED),
    # A model of text and pictures keeps it one level down.
    (
        {
            "max_position_embeddings": 9,
            "text_config": {
                "max_position_embeddings": 64,
                "rope_scaling": {"type": "linear", "factor": 2.0},
            },
        },
        128,
    ),
]


@pytest.mark.parametrize(("config", "length"), TABLE)
def test_length(config: dict[str, Any], length: int) -> None:
    assert context_length({"max_position_embeddings": 256, **config}) == length


def test_vllm_is_told_what_it_does_not_see() -> None:
    plain = {"max_position_embeddings": 256}
    yarn = {"rope_type": "yarn", "factor": 4.0}
    assert engine_overrides(plain) == {}
    assert engine_overrides(plain | {"rope_parameters": yarn}) == {"max_position_embeddings": 1024}
    whole = {"max_position_embeddings": 1024, "rope_parameters": yarn}
    assert engine_overrides(whole | {"original_max_position_embeddings": 256}) == {}
    assert engine_overrides({"text_config": plain | {"rope_parameters": yarn}}) == {
        "text_config": {"max_position_embeddings": 1024}
    }
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert engine_overrides(plain | {"rope_parameters": linear}) == {}
    told = engine_overrides(plain | {"rope_parameters": linear | {"factor": 2}})
    assert told == {"rope_parameters": linear}
    assert isinstance(told["rope_parameters"]["factor"], float)
    long = {"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG}
    assert engine_overrides(plain | {"rope_parameters": long}) == {
        "original_max_position_embeddings": 64
    }


def test_why_a_config_does_not_hold_what_it_seems_to() -> None:
    plain = {"max_position_embeddings": 256}
    assert context_remark(plain) is None
    assert context_remark(plain | {"rope_scaling": {"type": "yarn", "factor": 4.0}}) is None
    dynamic = context_remark(plain | {"rope_scaling": {"type": "dynamic", "factor": 4.0}})
    assert "its rope_type is dynamic" in str(dynamic)
    long = {"type": "longrope", "original_max_position_embeddings": 64, **LONG}
    said = context_remark(plain | {"rope_scaling": long})
    assert "original_max_position_embeddings" in str(said)
    assert context_remark({"max_position_embeddings": 64, "rope_scaling": long}) is None


def test_positions_that_trainers_do_not_know() -> None:
    assert unknown_rope({}) is None
    assert unknown_rope({"rope_parameters": {"rope_type": "yarn"}}) is None
    assert unknown_rope({"rope_scaling": {"type": "ntk", "factor": 2.0}}) == "ntk"
    assert unknown_rope({"text_config": {"rope_scaling": {"type": "su"}}}) == "su"
