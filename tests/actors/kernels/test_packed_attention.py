"""Packed rows through real models: logits and gradients are those of each text alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from actors.kernels.packed_attention import (
    PACKED,
    UnfitModel,
    check_model,
    packed_attention,
    packed_row,
)
from opd_ray.batching.packing import MIN_SHARED, Packing, Segment, pack

CPU = torch.device("cpu")
V = 64
RNG = np.random.default_rng(0)
SYSTEM = RNG.integers(0, V, MIN_SHARED)
QUESTION = np.concatenate([SYSTEM, RNG.integers(0, V, MIN_SHARED + 3)])
TEXTS = [
    np.concatenate([beginning, RNG.integers(0, V, more)])
    for beginning, more in ((QUESTION, 5), (SYSTEM, 9), (QUESTION, 2), (QUESTION[:0], 7))
]
KINDS = {
    "qwen3": {},
    "qwen2": {},
    "llama": {"attention_bias": True},
    "qwen2 with a sliding window": {
        "use_sliding_window": True,
        "sliding_window": 11,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "mistral": {"sliding_window": 20},
    # These tell their mask of the window, not their attention. (Phimoe's experts are drawn in
    # training, so it is compared as a teacher alone.)
    "phimoe": {"sliding_window": 20, "num_local_experts": 2},
    "qwen2_moe with a sliding window": {
        "use_sliding_window": True,
        "sliding_window": 11,
        "layer_types": ["full_attention", "sliding_attention"],
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}


def make_model(kind: str, attention: str = PACKED):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind.split()[0],
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.3,
        **KINDS[kind],
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def packed_logits(model, packing: Packing) -> torch.Tensor:
    ids_1T, positions_1T = packed_row(packing, CPU)
    return model(
        input_ids=ids_1T, position_ids=positions_1T, use_cache=False, segments=packing.segments
    ).logits[0]


def logits_alone(model, text: np.ndarray) -> torch.Tensor:
    return model(input_ids=torch.from_numpy(text)[None], use_cache=False).logits[0]


def gradients_of(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "phimoe"])
def test_logits_and_gradients_are_those_of_each_text_alone(kind, checkpointing):
    model = make_model(kind)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packing = pack(TEXTS, width=lambda tokens: tokens + 3)
    assert len(packing.ids_T) - 3 == sum(map(len, TEXTS)) - 2 * MIN_SHARED - MIN_SHARED - 3
    weights = [torch.from_numpy(RNG.normal(size=(len(text), V))).float() for text in TEXTS]

    logits_TV = packed_logits(model, packing)
    found = [logits_TV[places] for places in packing.places]
    loss = sum((w * f.log_softmax(-1)).sum() for w, f in zip(weights, found, strict=True))
    found_gradients = gradients_of(model, loss)

    plain = make_model(kind, "sdpa")
    wanted = [logits_alone(plain, text) for text in TEXTS]
    loss = sum((w * f.log_softmax(-1)).sum() for w, f in zip(weights, wanted, strict=True))
    wanted_gradients = gradients_of(plain, loss)

    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for name, wanted_gradient in wanted_gradients.items():
        scale = float(wanted_gradient.abs().max())
        torch.testing.assert_close(
            found_gradients[name], wanted_gradient, rtol=1e-3, atol=1e-4 * scale, msg=name
        )


@torch.no_grad()
def test_a_window_that_only_the_mask_knows_of_is_kept():
    """As a teacher's: nothing else would tell that it reads more of a long text than it should."""
    text = np.concatenate(TEXTS)
    found = packed_logits(make_model("phimoe").eval(), pack([text]))
    wanted = logits_alone(make_model("phimoe", "sdpa").eval(), text)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_attention_by_hand():
    """One head, keys of 0: every token's output is the mean of the values that it sees."""
    shared, one, other = Segment(0, 2), Segment(2, 3), Segment(3, 5)
    segments = (shared, replace(one, ancestors=(shared,)), replace(other, ancestors=(shared,)))
    value = torch.tensor([1.0, 2.0, 6.0, 9.0, 4.0]).view(1, 1, 5, 1)
    zero = torch.zeros_like(value)
    output, weights = packed_attention(nn.Module(), zero, zero, value, None, segments=segments)
    assert weights is None
    assert output.flatten().tolist() == pytest.approx([1.0, 1.5, 3.0, 4.0, 4.0])
    output, _ = packed_attention(
        nn.Module(), zero, zero, value, None, segments=segments, sliding_window=2
    )
    assert output.flatten().tolist() == pytest.approx([1.0, 1.5, 4.0, 5.5, 6.5])


def check(model):
    check_model(lambda packing: (packed_logits(model, packing),) * 2, V, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_plain_attention_pass_the_check(kind, dtype):
    check(make_model(kind).eval().to(dtype))


def checked(model: Any, scale: float, dtype: torch.dtype = torch.float32) -> None:
    """Check logits of which the model's own are ``scale`` times its head's."""

    def logits_of(packing: Packing) -> tuple[torch.Tensor, torch.Tensor]:
        ours_TV = packed_logits(model, packing)
        return ours_TV * scale, ours_TV

    check_model(logits_of, V, dtype)


@pytest.mark.parametrize(
    ("dtype", "taken", "refused"),
    [(torch.float32, 5e-5, 2e-4), (torch.bfloat16, 5e-3, 2e-2)],
)
def test_logits_that_are_scaled_after_the_head_are_refused(
    dtype: torch.dtype, taken: float, refused: float
) -> None:
    model = make_model("llama")
    checked(model, 1 + taken, dtype)
    with pytest.raises(UnfitModel, match="of the largest.*: the model scales or caps them"):
        checked(model, 1 + refused, dtype)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UnfitModel, match="NaN or infinite in float32"):
        checked(make_model("llama"), math.nan)


def test_a_model_that_looks_past_its_attention_is_found():
    class Mixing(nn.Module):
        """Every token's output takes in that of its neighbour in the row, as convolutions do."""

        def __init__(self, mlp):
            super().__init__()
            self.mlp = mlp

        def forward(self, hidden):
            return self.mlp(hidden) + hidden.roll(1, dims=1)

    model = make_model("llama")
    model.model.layers[0].mlp = Mixing(model.model.layers[0].mlp)
    with pytest.raises(UnfitModel, match="depend on the text beside it"):
        check(model)


def test_a_model_with_an_attention_of_its_own_is_found():
    """Bloom takes any keywords and drops them."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bloom", vocab_size=V, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    with pytest.raises(UnfitModel, match="depend on the text beside it"):
        check(AutoModelForCausalLM.from_config(config))


def test_a_window_in_the_configuration_of_a_model_without_one_counts_for_nothing():
    model = make_model("llama")
    model.config.sliding_window = 11
    text = TEXTS[0]
    wanted = logits_alone(make_model("llama", "sdpa"), text)
    torch.testing.assert_close(packed_logits(model, pack([text])), wanted, rtol=1e-4, atol=1e-4)


def test_attention_within_chunks_is_refused():
    """Such a model sees less of a long text than packed attention would show it."""
    model = make_model("llama")
    model.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(UnfitModel, match="LlamaAttention sees the chunk that a token is in"):
        check(model)


def test_a_forward_pass_of_another_kind_is_told_from_a_fault_of_ours():
    def forward(packing):
        raise AttributeError("'NoneType' object has no attribute 'to'")

    wanted = r"does not take packed texts as transformers' decoders do \(AttributeError: 'NoneType"
    with pytest.raises(UnfitModel, match=wanted):
        check_model(forward, V, torch.float32)


def test_a_model_that_takes_no_further_keywords_is_found():
    def forward(input_ids, position_ids, use_cache):
        raise AssertionError("not to be reached")

    with pytest.raises(UnfitModel, match="hands no keywords on to its attention"):
        check(forward)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"softcap": 30.0}, "the attention of Module has softcap"),
        ({"dropout": 0.1}, "the attention of Module has dropout"),
        ({"segments": None}, "the attention of Module takes no segments"),
    ],
)
def test_what_packed_attention_cannot_do_is_refused(extra, message):
    t = torch.zeros(1, 1, 2, 1)
    with pytest.raises(UnfitModel, match=message):
        packed_attention(nn.Module(), t, t, t, None, **({"segments": (Segment(0, 2),)} | extra))
