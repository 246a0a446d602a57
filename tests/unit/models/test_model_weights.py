"""Weights that are not all the model's own are refused by name; what is left out on purpose not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from broken_models import DOWN, UP, Tensors, demo_copy, set_config, sharded, without, wrapped
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from opd_ray.models.pairs.demo import pair_folder
from opd_ray.models.weight_files import WeightsError, check_one_source, weight_files
from opd_ray.models.weights import check_weights, load_causal_lm, weights_checked

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_extra(name: str, of: str | None = None) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        value = torch.ones(3) if of is None else tensors[of].clone()
        return tensors | {name: value}

    return change


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new, 1): t for name, t in tensors.items()}


BROKEN = {
    "missing": (without(DOWN, UP), {}, ["2 missing", DOWN, UP]),
    "wrapped": (
        wrapped,
        {},
        ["47 missing", "46 unknown", "module.model.embed_tokens.weight", "inside the wrapper"],
    ),
    "no head": (None, {"tie_word_embeddings": False}, ["1 missing (lm_head.weight)", "tie_word"]),
    "no embedding": (without(EMBEDDING), {}, ["2 missing", EMBEDDING]),
    "unknown": (with_extra("value_head.weight"), {}, ["1 unknown", "value_head.weight"]),
    "adapters": (with_extra("model.layers.0.lora_A.weight"), {}, ["lora_A", "merge_and_unload"]),
    "shape": (
        None,
        {"intermediate_size": 768},
        ["12 of another shape", f"{DOWN}: [128, 512] in the files, [128, 768] by config.json"],
    ),
    "layers": (
        None,
        {"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5},
        ["11 missing", "model.layers.4."],
    ),
    "fewer layers": (
        None,
        {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
        ["11 unknown", "model.layers.3."],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("look", [check_weights, load_causal_lm])
def test_weights_that_are_not_the_models_own_are_named(
    tmp_path: Path, case: str, look: Callable[[str], object]
) -> None:
    change, config, parts = BROKEN[case]
    folder = set_config(demo_copy(tmp_path / "model", change), **config)
    with pytest.raises(WeightsError) as caught:
        look(str(folder))
    for part in ("Qwen3ForCausalLM", str(folder), *parts):
        assert part in str(caught.value)


WHOLE = {
    "as it is": (None, {}),
    "inv_freq of old checkpoints": (
        with_extra("model.layers.0.self_attn.rotary_emb.inv_freq"),
        {},
    ),
    "a tied head in the file too": (with_extra(HEAD, EMBEDDING), {}),
    "the tied head alone": (renamed(EMBEDDING, HEAD), {}),
    "a head of its own": (with_extra(HEAD, EMBEDDING), {"tie_word_embeddings": False}),
    "without the prefix of the base model": (renamed("model.", ""), {}),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_left_out_or_named_otherwise_on_purpose_is_no_fault(
    tmp_path: Path, case: str
) -> None:
    change, config = WHOLE[case]
    folder = set_config(demo_copy(tmp_path / "model", change), **config)
    assert check_weights(str(folder)).compared
    load_causal_lm(str(folder))


def test_what_was_compared_is_told() -> None:
    check = check_weights(str(pair_folder() / "teacher"))
    assert check.detail == "46 tensors, 1.98 MB in 1 file: all of Qwen3ForCausalLM"


def test_fused_experts_are_known_by_the_names_of_their_files(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    expert = "model.layers.1.mlp.experts.2.up_proj.weight"
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert expert in tensors
    assert check_weights(str(tmp_path)).compared
    router = "model.layers.1.mlp.gate.weight"
    save_file(without(router)(tensors), file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=re.escape(f"1 missing ({router})")):
        check_weights(str(tmp_path))
    # One expert of four: what they are joined to has another shape, or cannot be made at all.
    save_file(without(expert)(tensors), file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="experts"):
        check_weights(str(tmp_path))


def test_shards_are_read_together(tmp_path: Path) -> None:
    folder = sharded(demo_copy(tmp_path / "model"))
    assert check_weights(str(folder)).detail.startswith("46 tensors, 1.98 MB in 2 files")
    lacking = sharded(demo_copy(tmp_path / "lacking", without(UP)))
    with pytest.raises(WeightsError, match=re.escape(f"1 missing ({UP})")):
        check_weights(str(lacking))


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = sharded(demo_copy(tmp_path / "model"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError) as caught:
        load_causal_lm(str(folder))
    text = str(caught.value)
    assert "model.safetensors.index.json" in text
    assert "2 files, of which 1 are not there (model-00002-of-00002.safetensors)" in text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (lambda data: data[:-1000], "bytes and is not whole"),
        (lambda data: data[:100], "100 bytes"),
        (lambda data: b"", "0 bytes"),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "git lfs pull",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_named(
    tmp_path: Path, content: Callable[[bytes], bytes], part: str
) -> None:
    file = demo_copy(tmp_path / "model") / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(WeightsError) as caught:
        check_weights(str(file.parent))
    assert str(caught.value).startswith(f"{file}: ")
    assert part in str(caught.value)


def test_an_index_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = sharded(demo_copy(tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(WeightsError, match="index.json: KeyError: 'weight_map'; copy"):
        check_weights(str(folder))


def test_pickled_weights_are_compared_too(tmp_path: Path) -> None:
    folder = demo_copy(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file)
    assert check_weights(str(folder)).compared
    torch.save(without(UP)(tensors), file)
    with pytest.raises(WeightsError, match=re.escape(UP)):
        check_weights(str(folder))
    torch.save({"model": tensors, "step": 3}, file)
    with pytest.raises(WeightsError, match="holds no tensor but a dict under 'model'"):
        check_weights(str(folder))
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(WeightsError, match="is not whole"):
        check_weights(str(folder))


def test_a_folder_without_weights_names_what_it_looked_for(tmp_path: Path) -> None:
    folder = demo_copy(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(WeightsError) as caught:
        weight_files(str(folder))
    assert "model.safetensors.index.json" in str(caught.value)
    assert "model.gguf, which is of another format" in str(caught.value)


@pytest.mark.parametrize("beside_weights", [False, True])
def test_an_adapter_is_no_model(tmp_path: Path, beside_weights: bool) -> None:
    folder = demo_copy(tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-4B"}')
    if not beside_weights:
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_causal_lm(str(folder))
    assert "an adapter (adapter_config.json) of the model 'Qwen/Qwen3-4B'" in str(caught.value)
    assert "merge_and_unload" in str(caught.value)


def test_files_that_vllm_alone_would_read_are_refused(tmp_path: Path) -> None:
    folder = demo_copy(tmp_path / "model")
    check_one_source(str(folder))
    save_file({"x": torch.ones(2)}, folder / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match="adapter_model.safetensors, which vLLM loads with it"):
        check_one_source(str(folder))
    check_weights(str(folder))  # a teacher of kind hf reads one file
    both = sharded(demo_copy(tmp_path / "both"))
    check_one_source(str(both))
    save_file({"x": torch.ones(2)}, both / "model.safetensors")
    with pytest.raises(WeightsError, match="by which vLLM takes model-00001-of-00002"):
        check_weights(str(both), vllm=True)


def test_an_engine_is_not_started_on_a_broken_folder(tmp_path: Path) -> None:
    folder = demo_copy(tmp_path / "model", without(UP))
    with pytest.raises(WeightsError, match=re.escape(UP)), weights_checked(str(folder)):
        pytest.fail("started")


def test_what_is_fetched_while_an_engine_starts_is_compared_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--owner--name"

    def fetch() -> None:
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        demo_copy(repository / "snapshots" / "abc", without(UP))

    with pytest.raises(WeightsError, match=re.escape(UP)), weights_checked("owner/name"):
        fetch()


def test_quantised_weights_are_not_compared_before_they_load(tmp_path: Path) -> None:
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    folder = set_config(demo_copy(tmp_path / "model"), quantization_config=quantised)
    check = check_weights(str(folder))
    assert not check.compared
    assert "quantised" in check.detail


def test_no_place_loads_a_model_past_the_check() -> None:
    root = Path(__file__).parents[3]
    files = [file for part in ("opd_ray", "actors") for file in (root / part).rglob("*.py")]
    loading = re.compile(r"AutoModel\w*\.from_pretrained\(|ForCausalLM\.from_pretrained\(")
    found = {str(f.relative_to(root)) for f in files if loading.search(f.read_text())}
    assert found == {"opd_ray/models/weights.py"}
