"""vLLM with an adapter writes as the student by definition, W + scale x B A, at every version."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from rollout_checks import assert_scores_match, load, reference_scores, start_host, tiny_requests
from tiny_models import HEAD_SIZE, character_tokenizer, make_tiny_qwen3
from transformers import AutoConfig, AutoModelForCausalLM

from actors.weights.chunks import pack
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import SyncSettings
from opd_ray.models.lora_targets import layers_of
from opd_ray.types import Sampling

SAMPLING = Sampling(max_tokens=12)
LORA = {
    "qwen3": LoraSettings(rank=8, alpha=4.0),
    "llama": LoraSettings(rank=8, alpha=32.0),
    "qwen2": LoraSettings(rank=8, target_modules=["q_proj", "down_proj"]),
}


def made(kind, folder):
    """A small model of a kind, with biases where the kind has any."""
    if kind == "qwen3":
        return make_tiny_qwen3(folder)
    config = AutoConfig.for_model(
        kind,
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=64 // HEAD_SIZE,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=kind == "qwen2",
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.5)
                elif parameter.ndim == 2:
                    parameter.mul_(12.0 if "embed" in name or "lm_head" in name else 5.0)
    model.save_pretrained(folder)
    character_tokenizer(96).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Adapter:
    """A and B by the name of their layer."""

    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float

    def chunks(self):
        """As a trainer sends it."""
        named = []
        for name, pair in self.matrices.items():
            for letter, matrix in zip("AB", pair, strict=True):
                named.append((f"base_model.model.{name}.lora_{letter}.weight", matrix))
        return list(pack(named, 1 << 12))

    def added_to(self, path):
        """The student by definition."""
        model = load(path)
        with torch.no_grad():
            for name, (first, second) in self.matrices.items():
                weight = model.get_submodule(name).weight
                for row in range(len(weight)):  # one row at a time, sums of outer products
                    weight[row] += self.scale * (second[row][:, None] * first).sum(0)
        return model


def random_adapter(path, lora, seed):
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for name, layer in layers_of(load(path)).items():
        last = name.rpartition(".")[2]
        if lora.target_modules and last not in lora.target_modules:
            continue
        first = torch.randn(lora.rank, layer.in_features, generator=generator) * 0.2
        second = torch.randn(layer.out_features, lora.rank, generator=generator) * 0.2
        matrices[name] = first, second
    return Adapter(matrices, lora.scale)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: made(kind, tmp_path_factory.mktemp(kind)) for kind in LORA}


@pytest.fixture(scope="module")
def host(folders):
    manager, engines = start_host()
    for kind, folder in folders.items():
        engines.start(kind, str(folder), {}, lora=LORA[kind])
    yield engines
    manager.shutdown()


def gap(model, rollouts):
    """Mean |difference of log-probabilities|, nats, as a run takes it."""
    found = [np.abs(r.logprob - reference_scores(model, r).logprob_m) for r in rollouts]
    return np.concatenate(found).mean()


@pytest.mark.parametrize("kind", LORA)
def test_every_version_is_the_student_by_definition(host, folders, kind):
    """The same long prompts at every version: nothing of an old one may lie in the cache."""
    requests, path = tiny_requests(prompts=3, shortest=70, step=5), folders[kind]
    for rollout in host.generate(kind, requests, SAMPLING):
        assert rollout.weights_version == 0
        assert_scores_match(load(path), rollout)
    # A run that has gone back pushes a version once more, with other weights.
    for seed, version in enumerate([1, 2, 1]):
        adapter = random_adapter(path, LORA[kind], seed)
        model = adapter.added_to(path)
        host.load_weights(kind, version, adapter.chunks())
        rollouts = host.generate(kind, requests, SAMPLING)
        assert gap(load(path), rollouts) > 0.05, "the adapter changes nothing"
        for rollout in rollouts:
            assert rollout.weights_version == version
            assert_scores_match(model, rollout)


def scaled_twice(adapter):
    pairs = {n: (a, b * adapter.scale) for n, (a, b) in adapter.matrices.items()}
    return replace(adapter, matrices=pairs)


def transposed(adapter):
    square = {n: len(b) == a.shape[1] for n, (a, b) in adapter.matrices.items()}
    assert any(square.values())
    pairs = adapter.matrices.items()
    return replace(
        adapter,
        matrices={n: (b.T.clone(), a.T.clone()) if square[n] else (a, b) for n, (a, b) in pairs},
    )


def without_a_layer(adapter):
    return replace(adapter, matrices=dict(list(adapter.matrices.items())[1:]))


@pytest.mark.parametrize("wrong", [scaled_twice, transposed, without_a_layer])
def test_an_adapter_that_is_not_the_trainers_is_above_the_greatest_gap(host, folders, wrong):
    path = folders["llama"]
    adapter = random_adapter(path, LORA["llama"], 11)
    model, requests = adapter.added_to(path), tiny_requests()
    host.load_weights("llama", 7, wrong(adapter).chunks())
    assert gap(model, host.generate("llama", requests, SAMPLING)) > SyncSettings().max_gap
    host.load_weights("llama", 8, adapter.chunks())
    assert gap(model, host.generate("llama", requests, SAMPLING)) < 1e-4


def test_a_stale_adapter_is_above_the_greatest_gap(host, folders):
    path = folders["qwen3"]
    old, new = (random_adapter(path, LORA["qwen3"], seed) for seed in (21, 22))
    host.load_weights("qwen3", 3, old.chunks())
    rollouts = host.generate("qwen3", tiny_requests(), SAMPLING)
    assert gap(new.added_to(path), rollouts) > SyncSettings().max_gap
    assert gap(old.added_to(path), rollouts) < 1e-4


def test_an_update_that_broke_off_is_mended_by_the_next(host, folders):
    path = folders["qwen2"]
    old, new = (random_adapter(path, LORA["qwen2"], seed) for seed in (31, 32))
    host.load_weights("qwen2", 1, old.chunks())
    host.call("qwen2", "start_weight_update")
    host.call("qwen2", "receive_weights", {"chunk": new.chunks()[0]})
    with pytest.raises(RuntimeError, match="weights are incomplete until another one is whole"):
        host.generate("qwen2", tiny_requests(), SAMPLING)
    host.call("qwen2", "start_weight_update")
    with pytest.raises(RuntimeError, match="without a tensor"):
        host.call("qwen2", "finish_weight_update", 2)
    host.load_weights("qwen2", 2, new.chunks())
    assert gap(new.added_to(path), host.generate("qwen2", tiny_requests(), SAMPLING)) < 1e-4


def test_what_vllm_refuses_leaves_the_last_adapter_whole(host, folders):
    path = folders["qwen2"]
    good = random_adapter(path, LORA["qwen2"], 41)
    host.load_weights("qwen2", 1, good.chunks())
    odd = {"model.layers.0.self_attn.no_proj": next(iter(good.matrices.values()))}
    with pytest.raises(ValueError, match="no_proj"):
        host.load_weights("qwen2", 2, replace(good, matrices=odd).chunks())
    with pytest.raises(RuntimeError, match="weights are incomplete"):
        host.generate("qwen2", tiny_requests(), SAMPLING)
    host.load_weights("qwen2", 3, good.chunks())
    assert gap(good.added_to(path), host.generate("qwen2", tiny_requests(), SAMPLING)) < 1e-4
