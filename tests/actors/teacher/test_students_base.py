"""The student with its adapter off answers as its base does, and is trained on as before."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_qwen3

from actors.kernels.packed_attention import PACKED, packed_row
from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.kinds.students_base import AdapterOff
from actors.trainer.adapter import adapter_off, add_adapter
from actors.trainer.student import Student
from opd_ray.batching.packing import pack
from opd_ray.config.choices import SignalChoice
from opd_ray.config.lora import LoraSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.weights import load_causal_lm
from opd_ray.types import ScoreRequest, TopK

VOCAB, K = 90, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_tiny_qwen3(tmp_path_factory.mktemp("student")))


def adapted(folder, seed=0, **lora):
    """As a trainer holds it, its adapter not zero."""
    model = load_causal_lm(folder, dtype=torch.float32, attn_implementation=PACKED)
    add_adapter(model, LoraSettings(rank=8, **lora), seed)
    student = Student(model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return student.model


def requests():
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        ids = rng.integers(3, VOCAB, 12).astype(np.int32)
        topk = TopK(
            np.stack([rng.permutation(VOCAB)[:K] for _ in range(7)]).astype(np.int32),
            np.full((7, K), -np.log(VOCAB), np.float32),
        )
        found.append(ScoreRequest(f"r{number}", ids[:5], ids[5:], topk))
    return found


@pytest.mark.parametrize("signal", [SignalChoice.topk, SignalChoice.hidden])
def test_it_answers_as_the_base_and_the_student_stays_as_it_is(folder, signal):
    settings = TeacherSettings(path=folder, signal=signal, topk=3)
    model = adapted(folder)
    model.train()
    packing = pack([np.arange(3, 30)])
    ids_1T, positions_1T = packed_row(packing, torch.device("cpu"))
    row = {"input_ids": ids_1T, "position_ids": positions_1T, "use_cache": False}
    row["segments"] = packing.segments
    before = model.base_model(**row).last_hidden_state
    teacher = AdapterOff(settings, model, partial(adapter_off, model), vocab_size=VOCAB)
    base = HfTeacher(settings, vocab_size=VOCAB)
    assert teacher.info() == base.info()
    for one, other in zip(teacher.score(requests()), base.score(requests()), strict=True):
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-5)
        np.testing.assert_allclose(one.at_student_topk, other.at_student_topk, atol=1e-5)
        if signal is SignalChoice.topk:
            np.testing.assert_array_equal(one.signal.ids, other.signal.ids)
        else:
            np.testing.assert_allclose(one.signal.hidden, other.signal.hidden, atol=1e-4)
    for one, other in zip(teacher.output_head(), base.output_head(), strict=True):
        np.testing.assert_array_equal(one, other)
    teacher.close()
    # The adapter is on again, and learns.
    assert model.training
    after = model.base_model(**row).last_hidden_state
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    with adapter_off(model), torch.no_grad():
        assert (model.base_model(**row).last_hidden_state - before).abs().max() > 0.1
    after.square().sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name and grad.abs().max() > 0 for name, grad in trained.items())


def test_an_adapter_begins_at_nothing_by_the_seed_alone(folder):
    def begun(seed):
        torch.manual_seed(seed + 100)  # what torch draws elsewhere does not count
        model = load_causal_lm(folder, dtype=torch.float32, attn_implementation=PACKED)
        add_adapter(model, LoraSettings(rank=8, target_modules=["q_proj", "up_proj"]), seed)
        return {n: p.detach() for n, p in model.named_parameters() if ".lora_" in n}

    one, same, other = begun(0), begun(0), begun(1)
    assert len(one) == 2 * 2 * 2
    first = [name for name in one if "lora_A" in name]
    for name in one:
        assert torch.equal(one[name], same[name])
        assert (one[name].abs().max() > 0) == (name in first)
    assert all(not torch.equal(one[name], other[name]) for name in first)
    assert not torch.equal(one[first[0]], one[first[2]])  # each layer has a draw of its own
    bound = 64**-0.5
    for name in first:
        assert one[name].abs().max() <= bound
        assert one[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
