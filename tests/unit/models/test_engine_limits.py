"""What the engines cannot run is told from config.json alone, and agrees with the engines."""

from __future__ import annotations

from typing import Any

import pytest

from opd_ray.models.engine_limits import (
    packed_problems,
    trained_problems,
    vllm_problems,
)

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
}


def found(changed: dict[str, Any], *, on_cpu: bool = True, split: int = 1) -> list[str]:
    return list(vllm_problems(QWEN3 | changed, on_cpu=on_cpu, split=split))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"head_dim": 80},
        {"head_dim": None},  # 128 in a Qwen3
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": None},
        {"architectures": None},
        # Its class, not its config.json, may say how large its heads are.
        {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": None},
        {"architectures": ["Nobody"], "auto_map": {"AutoModelForCausalLM": "m.Nobody"}},
        {"head_dim": 20, "kv_lora_rank": 512},
        {"text_config": {"head_dim": 64}, "head_dim": 20},
    ],
)
def test_what_vllm_runs_is_no_problem(changed: dict[str, Any]) -> None:
    assert found(changed) == []


def test_heads_of_other_sizes_are_for_gpus_alone() -> None:
    (text,) = found({"head_dim": 20})
    assert "attention heads of 20 (head_dim)" in text
    assert "32, 64, 80, 96" in text
    assert found({"head_dim": 20}, on_cpu=False) == []
    # Without the key the heads share the hidden state.
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": None}
    (text,) = found(llama | {"hidden_size": 160})
    assert "heads of 40" in text
    (text,) = found({"text_config": {"head_dim": 20}})
    assert "heads of 20" in text


@pytest.mark.parametrize(
    ("split", "changed", "parts"),
    [
        (2, {}, []),
        (4, {}, []),  # two keys are held twice
        (4, {"vocab_size": 24}, []),  # padded to 64
        (3, {}, ["num_attention_heads = 4", "intermediate_size = 256", "pads to 1024"]),
        (2, {"num_attention_heads": 6, "num_key_value_heads": 3}, ["num_key_value_heads = 3"]),
        (6, {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 192,
             "vocab_size": 384}, ["num_key_value_heads = 4"]),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_named(
    split: int, changed: dict[str, Any], parts: list[str]
) -> None:
    texts = found(changed, split=split)
    assert len(texts) == len(parts)
    for text, part in zip(texts, parts, strict=True):
        assert part in text
        assert f"multiple of {split}" in text or f"divisor of {split}" in text


def test_an_architecture_that_vllm_does_not_know_is_named() -> None:
    (text,) = found({"architectures": ["Qwen3ForSequenceClassification"]})
    assert "architectures = Qwen3ForSequenceClassification" in text
    (text,) = found({"architectures": ["NobodyForCausalLM"]})
    assert "NobodyForCausalLM" in text
    # vLLM runs transformers' own class where it has none.
    assert found({"architectures": ["CodeGenForCausalLM"]}) == []


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"logits_scaling": 8}, "logits_scaling = 8"),
        ({"text_config": {"logit_scale": 0.25}}, "logit_scale = 0.25"),
    ],
)
def test_capped_and_scaled_logits_are_named(changed: dict[str, Any], part: str) -> None:
    (text,) = packed_problems(QWEN3 | changed)
    assert part in text


def test_neutral_values_are_no_problem() -> None:
    neutral = {"final_logit_softcapping": None, "logits_scaling": 1, "logit_scale": 1.0}
    assert list(packed_problems(QWEN3 | neutral)) == []
    assert list(trained_problems(QWEN3 | {"attention_dropout": 0.0})) == []


def test_what_cannot_be_trained_is_named() -> None:
    (text,) = trained_problems(QWEN3 | {"attention_dropout": 0.1})
    assert "attention_dropout = 0.1" in text
    (text,) = trained_problems(QWEN3 | {"quantization_config": {"quant_method": "fp8"}})
    assert "quantization_config" in text
