"""The output head that lends its weight, without an engine."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_tiny_qwen3
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from actors.kernels.packed_attention import PACKED
from actors.trainer.student import DivergenceHead, Student, check_student, load_student
from opd_ray.batching.packing import Segment
from opd_ray.config.schema import StudentSettings
from opd_ray.errors import ConfigError

CPU = torch.device("cpu")


def load(folder):
    settings = StudentSettings(path=str(folder))
    return load_student(settings, torch.float32, gradient_checkpointing=False, zero3_config=None)


def model_of(kind, **config):
    """The smallest of an architecture, random."""
    smallest = AutoConfig.for_model(
        kind,
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **config,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(smallest, attn_implementation=PACKED)


@pytest.mark.parametrize("tied", [True, False])
def test_names_parameters_and_logits_stay_the_models_own(tmp_path, tied):
    folder = make_tiny_qwen3(tmp_path, tied=tied)
    original = AutoModelForCausalLM.from_pretrained(folder)
    student = load(folder)
    assert list(student.model.state_dict()) == list(original.state_dict())
    assert [n for n, _ in student.model.named_parameters()] == [
        n for n, _ in original.named_parameters()
    ]
    head = student.model.get_output_embeddings()
    assert isinstance(head, DivergenceHead)
    assert (head.weight is student.model.get_input_embeddings().weight) == tied
    ids_BL = torch.randint(0, 96, (2, 7))
    ids_1T, positions_1T = ids_BL.view(1, 14), torch.arange(7).repeat(2)[None]
    segments = (Segment(0, 7), Segment(7, 14))
    kept_N = torch.tensor([3, 0, 12])
    with torch.no_grad():
        logits_NV = student(ids_1T, positions_1T, segments=segments, kept_N=kept_N)
        wanted = original(ids_BL).logits.flatten(0, 1)
        torch.testing.assert_close(logits_NV, wanted[kept_N])
        all_TV = student(ids_1T, positions_1T, segments=segments)
        torch.testing.assert_close(all_TV, wanted)


def test_a_function_gets_hidden_states_weight_and_bias():
    linear = nn.Linear(3, 5, bias=True)
    head = DivergenceHead.over(linear)
    hidden = torch.randn(4, 3)
    assert head(hidden, function=lambda *lent: lent) == (hidden, linear.weight, linear.bias)
    torch.testing.assert_close(head(hidden), linear(hidden))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gemma2", "attention of Gemma2Attention has softcap"),
        ("cohere", "scales or caps them"),
        ("granite", "scales or caps them"),
    ],
)
def test_models_that_cap_or_scale_their_logits_are_refused(kind, message):
    model = model_of(kind, logits_scaling=4.0, pad_token_id=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(50.0)
    student = Student(model)
    with pytest.raises(ConfigError, match=message):
        check_student(student, CPU, 32, torch.float32)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral"])
def test_plain_models_are_taken(kind):
    model = model_of(kind)
    check_student(Student(model), CPU, 32, torch.float32)


@pytest.mark.parametrize("rate", ["attention_dropout", "router_jitter_noise"])
def test_what_is_drawn_in_training_alone_is_refused(tmp_path, rate):
    folder = make_tiny_qwen3(tmp_path)
    config = AutoConfig.from_pretrained(folder)
    setattr(config, rate, 0.1)
    config.save_pretrained(folder)
    with pytest.raises(ConfigError, match=rf"has dropout or jitter .*{rate}': 0\.1"):
        load(folder)
