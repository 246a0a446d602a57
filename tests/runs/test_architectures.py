"""Tiny random Llama and Qwen2 pairs through whole runs on the real engines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from in_process import run
from launching import rows
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from opd_ray.cli import main
from opd_ray.models.pairs.demo import VOCABULARY, character_tokenizer

HEAD_SIZE = 32  # the smallest that vLLM's CPU attention takes
_RUN = (
    "run.steps=2",
    "run.export_at_end=true",
    "teacher.kind=vllm",
    "teacher.signal=topk",
    "teacher.topk=8",
    "rollout.record_topk=8",
    "trainer.zero_stage=3",
    "trainer.gradient_checkpointing=true",
    "trainer.micro_batch_tokens=128",
    # Large: weights that vLLM missed in one step would show.
    "trainer.learning_rate=0.01",
)


def make_model(folder: Path, kind: str, *, layers: int, tied: bool, rows: int, seed: int) -> Path:
    """A random model with grouped queries and sharp distributions, and the demo's tokenizer.

    ``rows`` of the vocabulary beyond the tokenizer's are padding.
    """
    config = AutoConfig.for_model(
        kind,
        vocab_size=rows,
        hidden_size=4 * HEAD_SIZE,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # made as zeros, which would hide a lost bias
                    parameter.normal_(std=0.5)
                elif "norm" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                else:
                    parameter.mul_(10.0 if parameter.shape[0] == rows else 4.0)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of every token after every other, [V, 2, V]."""
    first = torch.arange(len(VOCABULARY))
    return model(input_ids=torch.stack([first, first.flip(0)], dim=1)).logits


# As the recipes do on GPUs: engines split over two processes, everything in bfloat16. vLLM pads the
# student's 32 rows to 64, so its second process holds nothing but padding.
_AS_RECIPES = (
    "rollout.tensor_parallel_size=2",
    "teacher.tensor_parallel_size=2",
    "rollout.dtype=bfloat16",
    "teacher.dtype=bfloat16",
    "trainer.dtype=bfloat16",
)


@pytest.mark.parametrize(
    ("kind", "tied", "overrides", "largest_gap"),
    [("llama", False, _AS_RECIPES, 0.05), ("qwen2", True, (), 1e-4)],
    ids=["llama-untied-split-bfloat16", "qwen2-tied"],
)
def test_two_steps(
    kind: str,
    tied: bool,
    overrides: Sequence[str],
    largest_gap: float,
    ray_address: str,
    tmp_path: Path,
) -> None:
    student = make_model(tmp_path / "student", kind, layers=2, tied=tied, rows=32, seed=1)
    teacher = make_model(tmp_path / "teacher", kind, layers=3, tied=not tied, rows=40, seed=2)
    before = load(student)
    biases = [name for name, _ in before.named_parameters() if name.endswith("bias")]
    assert len(biases) == (6 if kind == "qwen2" else 0)

    output = tmp_path / "run"
    paths = (f"student.path={student}", f"teacher.path={teacher}")
    run(output, *_RUN, *overrides, *paths, f"cluster.address={ray_address}")
    steps = rows(output)
    assert [row["rollout/weights_version"] for row in steps] == [0, 1]
    # Trainer and vLLM agree on the weights as loaded, and on those that were sent.
    assert all(row["sync/gap_mean"] < largest_gap for row in steps)
    assert all(math.isfinite(row["train/loss"]) and row["train/loss"] > 0 for row in steps)
    assert steps[0]["train/loss"] != steps[1]["train/loss"]

    exported = load(output / "export")
    for name, parameter in exported.named_parameters():
        assert not torch.equal(parameter, before.get_parameter(name)), f"{name} was not trained"
    again = tmp_path / "again"
    checkpoint = output / "checkpoints" / "step_00000002"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(again)]) == 0
    torch.testing.assert_close(logits(exported), logits(load(again)), rtol=0, atol=0)
