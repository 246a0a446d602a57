"""Layers recomputed in the backward pass: what is kept, what the peak is, the same gradients."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from live_tensors import LiveTensors
from tiny_models import make_tiny_qwen3
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from actors.kernels.packed_attention import PACKED
from actors.trainer.student import Student, load_student, recompute_layers
from opd_ray.batching.packing import Segment
from opd_ray.config.schema import StudentSettings
from opd_ray.errors import ConfigError
from opd_ray.models.shape import ModelShape, read_shape

LAYERS, TOKENS, FLOAT32 = 6, 256, 4


def hidden_states(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Of a row that is one text."""
    ids = torch.randint(3, 90, (1, tokens), generator=torch.Generator().manual_seed(0))
    row = {"input_ids": ids, "position_ids": torch.arange(tokens)[None], "use_cache": False}
    return model.base_model(**row, segments=(Segment(0, tokens),)).last_hidden_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen3(tmp_path_factory.mktemp("student"), layers=LAYERS)


def student(folder, recomputed: int | None) -> Student:
    """With so many layers recomputed; 0: none."""
    return load_student(
        StudentSettings(path=str(folder)),
        torch.float32,
        gradient_checkpointing=recomputed != 0,
        recomputed_layers=recomputed,
        zero3_config=None,
    ).train()


def test_every_recomputed_layer_saves_its_activations_and_the_gradients_are_the_same(folder):
    shape = read_shape(str(folder))
    saved = TOKENS * (shape.layer_activation_bytes(FLOAT32) - shape.hidden_size * FLOAT32)
    kept, peaks, gradients = [], [], []
    for recomputed in range(LAYERS + 1):
        one = student(folder, recomputed)
        with LiveTensors() as live:
            hidden = hidden_states(one.model, TOKENS)
            kept.append(live.now)
            hidden.square().sum().backward()
        peaks.append(live.peak)
        gradients.append([p.grad for p in one.parameters()])
    for fewer, more in pairwise(kept):
        assert fewer - more == pytest.approx(saved, rel=0.02)
    # Layers that keep theirs are done when the first is recomputed, and their memory is free again.
    for fewer, more in pairwise(peaks[:-2]):
        assert fewer - more == pytest.approx(saved, rel=0.02)
    assert peaks[-3] > peaks[-2] >= peaks[-1]
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(one, other)


def test_null_is_all_of_them(folder):
    flags = [layer.gradient_checkpointing for layer in student(folder, None).model.model.layers]
    assert flags == [True] * LAYERS
    flags = [layer.gradient_checkpointing for layer in student(folder, 2).model.model.layers]
    assert flags == [True] * 2 + [False] * 4


def test_layers_that_cannot_be_told_apart_are_refused(folder):
    one = student(folder, 0).model
    one.model.layers = torch.nn.ModuleList()
    recompute_layers(one, None)
    with pytest.raises(ConfigError, match=r"trainer.recomputed_layers = 2: .* set it to null"):
        recompute_layers(one, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_what_a_layer_keeps_is_what_the_estimate_says(kind, dtype):
    """All that one more layer saves for the backward pass, but for its weights."""
    kept = []
    for layers in (2, 3):
        config = AutoConfig.for_model(
            kind,
            vocab_size=96,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=TOKENS,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=PACKED)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved: dict[int, torch.Tensor] = {}

        def note(tensor: torch.Tensor, saved: dict[int, torch.Tensor] = saved) -> torch.Tensor:
            saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            hidden_states(model, TOKENS)
        kept.append(
            sum(t.untyped_storage().nbytes() for ptr, t in saved.items() if ptr not in weights)
        )
    shape = ModelShape.from_config(config.to_dict())
    wanted = TOKENS * shape.layer_activation_bytes(dtype.itemsize)
    assert kept[1] - kept[0] == pytest.approx(wanted, rel=0.02)
