"""Students that are trained as an adapter: gradients, checkpoints and exports, under every ZeRO."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import make_tiny_qwen3
from trainer_data import (
    ROWS,
    VOCAB,
    naive_loss,
    ragged_items,
    share_out,
    teacher_head,
    total_weight,
)
from trainer_ranks import shared_ranks
from transformers import AutoModelForCausalLM

from actors.trainer.checkpoint import CheckpointMismatch
from actors.trainer.export import export_checkpoint
from opd_ray.config.choices import Dtype, LoraForm
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import StudentSettings, TrainerSettings

LORA = LoraSettings(rank=8, alpha=24.0, target_modules=["q_proj", "o_proj", "down_proj"])
LAYOUTS = [
    (0, Dtype.float32),
    (2, Dtype.float32),
    (3, Dtype.float32),
    (1, Dtype.bfloat16),
    (3, Dtype.bfloat16),
]
RATE = 1e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen3(tmp_path_factory.mktemp("student"), vocab=ROWS)


@pytest.fixture(scope="module")
def ranks():
    return shared_ranks(2)


def start(group, folder, stage, dtype, lora=LORA):
    settings = TrainerSettings(zero_stage=stage, dtype=dtype, gradient_checkpointing=stage == 2)
    group.start(folder, settings, vocab_size=VOCAB, head=teacher_head(), lora=lora)


def step(group, seed):
    items, signals = ragged_items(7, seed=seed)
    plan = share_out(items, group.world_size, 2)
    return group.call_each("train_step", [(p, total_weight(items), RATE, signals) for p in plan])


@pytest.fixture(scope="module")
def written(ranks, folder, tmp_path_factory):
    """By layout: the adapter at the start, a checkpoint after two steps, what a third made."""
    found = {}
    for stage, dtype in LAYOUTS:
        start(ranks, folder, stage, dtype)
        begun = ranks.adapter()
        first = step(ranks, 0)
        after_one = ranks.adapter()
        step(ranks, 1)
        target = tmp_path_factory.mktemp("checkpoint") / "trainer"
        ranks.call("engine.save", str(target))
        ranks.call("engine.export", str(target.with_suffix(".export")))
        saved = ranks.adapter(), ranks.weights()
        found[stage, dtype] = (
            begun,
            first,
            after_one,
            target,
            saved,
            step(ranks, 2),
            ranks.adapter(),
        )
    return found


def peft_model(folder, adapter, dtype=torch.float64):
    """peft's own model with an adapter by the names of its files."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    config = LoraConfig(r=8, lora_alpha=24, target_modules=LORA.target_modules)
    model = get_peft_model(model, config)
    named = {n.replace(".default.", "."): p for n, p in model.named_parameters()}
    assert adapter.keys() == {name for name in named if ".lora_" in name}
    with torch.no_grad():
        for name, value in adapter.items():
            named[name].copy_(torch.tensor(value))
    return model


@pytest.mark.parametrize(("stage", "dtype"), LAYOUTS)
def test_a_step_is_pefts_with_adamw_and_moves_nothing_else(stage, dtype, written, folder):
    begun, stats, after, *_ = written[stage, dtype]
    assert all((np.abs(v).max() > 0) == ("lora_A" in name) for name, v in begun.items())
    model = peft_model(folder, begun)
    loss, _ = naive_loss(model, *ragged_items(7, seed=0), teacher_head())
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained.values()]).item()
    tolerance = 1e-4 if dtype is Dtype.float32 else 0.05
    assert stats[0].grad_norm == pytest.approx(norm, rel=tolerance)
    assert sum(s.loss_sum for s in stats) / sum(s.weight_sum for s in stats) == pytest.approx(
        loss.item(), rel=tolerance
    )
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.1)
    optimizer.step()
    if dtype is Dtype.float32:
        for name, parameter in trained.items():
            found = after[name.replace(".default.", ".")]
            # AdamW's first step is as large for a gradient of rounding error alone.
            close = np.isclose(found, parameter.detach().numpy(), atol=1e-4)
            assert close.mean() > 0.99, name


def test_all_layouts_of_a_format_make_the_same_adapter(written):
    plain = written[0, Dtype.float32][4][0]
    for stage in (2, 3):
        other = written[stage, Dtype.float32][4][0]
        assert plain.keys() == other.keys()
        for name, value in plain.items():
            np.testing.assert_allclose(other[name], value, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(("stage", "dtype"), LAYOUTS)
def test_merged_weights_are_those_of_peft_and_the_rest_is_the_base(stage, dtype, written, folder):
    adapter, merged = written[stage, dtype][4]
    model = peft_model(folder, adapter, torch.float32).merge_and_unload()
    base = load_file(folder / "model.safetensors")
    wanted = dict(model.named_parameters(remove_duplicate=False))
    assert merged.keys() == wanted.keys()
    coarse = {"rtol": 1e-2, "atol": 2e-2} if dtype is Dtype.bfloat16 else {"atol": 1e-5}
    for name, value in merged.items():
        np.testing.assert_allclose(value, wanted[name].detach().numpy(), **coarse, err_msg=name)
        if name in base and not any(part in name for part in LORA.target_modules):
            rounded = base[name].to(getattr(torch, dtype.value)).float()
            np.testing.assert_array_equal(value, rounded.numpy())


@pytest.mark.parametrize(("stage", "dtype"), LAYOUTS)
def test_a_checkpoint_holds_the_adapter_alone_and_the_next_step_is_the_same(
    stage, dtype, written, ranks, folder
):
    target, _, stats, after = written[stage, dtype][3:]
    layout = json.loads((target / "layout.json").read_text())
    assert all(".lora_" in name for name in layout["parameters"])
    assert len(layout["parameters"]) == 2 * 3 * 2
    start(ranks, folder, stage, dtype)
    ranks.call("engine.load", str(target))
    for found, wanted in zip(step(ranks, 2), stats, strict=True):
        assert (found.loss_sum, found.grad_norm) == (wanted.loss_sum, wanted.grad_norm)
    for name, value in ranks.adapter().items():
        np.testing.assert_array_equal(value, after[name])


def test_it_goes_on_with_another_number_of_ranks_and_another_stage(written, folder):
    target, (saved, _), _, after = written[2, Dtype.float32][3:]
    alone = shared_ranks(1)
    for stage in (0, 3):
        start(alone, folder, stage, Dtype.float32)
        alone.call("engine.load", str(target))
        for name, value in alone.adapter().items():
            np.testing.assert_array_equal(value, saved[name])
        step(alone, 2)
        for name, value in alone.adapter().items():
            np.testing.assert_allclose(value, after[name], atol=1e-4, err_msg=name)


def test_a_checkpoint_of_another_rank_or_of_a_whole_student_is_refused(written, ranks, folder):
    target = written[2, Dtype.float32][3]
    start(ranks, folder, 0, Dtype.float32, LoraSettings(rank=16, target_modules=["q_proj"]))
    with pytest.raises(CheckpointMismatch, match="weights of another model"):
        ranks.call("engine.load", str(target))
    start(ranks, folder, 0, Dtype.float32, LoraSettings())
    with pytest.raises(CheckpointMismatch, match="weights of another model"):
        ranks.call("engine.load", str(target))


def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits[0]


@pytest.mark.parametrize("stage", [0, 3])
def test_exports_are_the_student_as_a_model_and_as_an_adapter(stage, written, folder, tmp_path):
    target, (adapter, _), *_ = written[stage, Dtype.float32][3:]
    wanted = logits_of(peft_model(folder, adapter, torch.float32))
    unlike = logits_of(AutoModelForCausalLM.from_pretrained(folder))
    assert (wanted - unlike).abs().max() > 0.1
    at_the_end = AutoModelForCausalLM.from_pretrained(target.with_suffix(".export"))
    torch.testing.assert_close(logits_of(at_the_end), wanted, atol=1e-3, rtol=1e-3)

    student, trainer = StudentSettings(path=str(folder), lora=LORA), TrainerSettings()
    export_checkpoint(target, student, trainer, tmp_path / "merged", form=LoraForm.merged)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged), wanted, atol=1e-3, rtol=1e-3)

    export_checkpoint(target, student, trainer, tmp_path / "adapter", form=LoraForm.adapter)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(by_peft), wanted, atol=1e-3, rtol=1e-3)
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(by_transformers), wanted, atol=1e-3, rtol=1e-3)
