"""The four losses are one loss, and differ in memory as they are said to."""

from __future__ import annotations

import head_losses
import memory_step
import pytest
import torch
from head_losses import LOSSES
from memory_step import StudentStep, Text, meter_of
from transformers import AutoModelForCausalLM

ROWS, HIDDEN, VOCAB, TEACHER = 24, 16, 500, 20
DESCRIBED = {
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(head_losses, "CHUNK_ROWS", 5)


def test_they_give_the_same_value_and_gradients():
    torch.manual_seed(0)
    given = [torch.randn(ROWS, HIDDEN), torch.randn(VOCAB, HIDDEN)]
    of_teacher, its_head = torch.randn(ROWS, TEACHER), torch.randn(VOCAB, TEACHER)
    found = {}
    for name, loss in LOSSES.items():
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        value = loss(*leaves, of_teacher, its_head)
        value.backward()
        found[name] = (value.detach(), *(leaf.grad for leaf in leaves))
    p = (given[0] @ given[1].T).softmax(-1)
    q = (of_teacher @ its_head.T).softmax(-1)
    assert found["fused"][0] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)
    for own in found.values():
        for value, first in zip(own, found["full logits"], strict=True):
            torch.testing.assert_close(value, first, rtol=1e-4, atol=1e-4)


def test_kept_chunks_grow_with_the_rows_and_recomputed_ones_do_not():
    def peak(name: str, rows: int) -> int:
        with torch.device("meta"):
            hidden = torch.empty(rows, HIDDEN, requires_grad=True)
            head = torch.empty(VOCAB, HIDDEN, requires_grad=True)
            of_teacher, its_head = torch.empty(rows, TEACHER), torch.empty(VOCAB, TEACHER)
        with memory_step.CountedTensors() as counted:
            LOSSES[name](hidden, head, of_teacher, its_head).backward()
        return counted.peak

    one_row = VOCAB * 4
    # What log-softmax and the divergence save of a row more: three tensors of logits.
    assert peak("chunks kept", 100) - peak("chunks kept", 50) > 2.9 * 50 * one_row
    assert peak("full logits", 100) > peak("chunks kept", 100)
    assert peak("chunks recomputed", 100) - peak("chunks recomputed", 50) < 5 * one_row


def test_a_step_of_a_student_is_counted_alike_with_and_without_contents():
    """But for the blocks of the fused loss, which are smaller in a processor's cache."""
    text = Text(prompt=4, response=20)
    for name in ("full logits", "chunks kept", "chunks recomputed"):
        counts = []
        for device in (torch.device("cpu"), torch.device("meta")):
            step = StudentStep(DESCRIBED, TEACHER, text, device, dtype=torch.float32)
            counts.append(step.measure(LOSSES[name], 0.5, meter_of(device)).counted)
        # Flash-shaped attention is not to the byte what PyTorch's on CPUs is.
        assert counts[0] == pytest.approx(counts[1], rel=0.05), name


def test_a_step_is_that_of_the_plain_model(monkeypatch):
    text = Text(prompt=3, response=8)
    step = StudentStep(DESCRIBED, TEACHER, text, torch.device("cpu"), dtype=torch.float32)
    _, value = step.run(LOSSES["fused"], 0.5)
    plain = AutoModelForCausalLM.from_config(step._model.config, attn_implementation="eager")
    plain.load_state_dict(step._model.state_dict())
    logits = plain(torch.arange(11)[None]).logits[0, 2:6]  # what predicts the first four tokens
    p = logits.softmax(-1)
    p = p.detach()
    q = (step._of_teacher_mD[:4] @ step._teacher_VD.T).softmax(-1)
    assert value == pytest.approx(float((p * (p / q).log()).sum() / 4), rel=1e-3)
    # No gradient stays behind: a rank has them in a buffer that it holds anyway.
    assert all(parameter.grad is None for parameter in step._model.parameters())
