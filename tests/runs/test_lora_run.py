"""Students trained as an adapter in whole runs: both ways of sync, deaths, resumed, exported."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from in_process import run
from launching import rows
from peft import PeftModel
from safetensors.torch import load_file
from test_lagging_runs import signal_in_steps
from transformers import AutoModelForCausalLM

from opd_ray.cli import main
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.tasks.chain_sum import ChainSumGenerator

_LORA = ("student.lora.rank=16", "student.lora.alpha=32", "trainer.learning_rate=5e-3")
_SAME = ("train/loss", "train/kept_tokens", "train/grad_norm", "rollout/tokens")


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(3, 23)[None]).logits[0]
    return logits


def test_an_adapter_sent_alone_or_merged_makes_one_run(
    ray_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second run has the first one's adapter of step 2, other ranks, and one that dies.

    In the first one roles take turns: an engine that slept has its base again below the adapter.
    """
    settings = (f"cluster.address={ray_address}", "run.steps=4", *_LORA)
    whole, other = tmp_path / "whole", tmp_path / "other"
    run(
        whole,
        *settings,
        *("run.checkpoint_every=2", "run.export_at_end=true", "cluster.placement=turns"),
        "student.lora.export=adapter",
    )
    checkpoint = whole / "checkpoints" / "step_00000002"
    layout = json.loads((checkpoint / "trainer" / "layout.json").read_text())
    assert all(".lora_" in name for name in layout["parameters"])
    with monkeypatch.context() as patch:
        signal_in_steps(patch, {1: (1, signal.SIGKILL)})
        run(
            other,
            *settings,
            *("sync.lora=merged", "trainer.ranks=2", "trainer.zero_stage=2"),
            *("run.checkpoint_every=3", f"run.resume={checkpoint}"),
        )
    assert "all ranks start again" in capsys.readouterr().err
    first, second = rows(whole), rows(other)
    assert [row["step"] for row in second] == [3, 4]
    for one, again in zip(first[2:], second, strict=True):
        for name in _SAME:
            assert again[name] == pytest.approx(one[name], rel=1e-3), name
        # Every token of the trainer's is as likely to vLLM with the adapter.
        assert max(one["sync/gap_mean"], again["sync/gap_mean"]) < 1e-4
    # The student has moved by far, so a stale adapter would have been a gap.
    assert abs(first[3]["train/loss"] - first[0]["train/loss"]) > 0.1

    last = whole / "checkpoints" / "step_00000004"
    assert main(["export", "--checkpoint", str(last), "--out", str(tmp_path / "merged")]) == 0
    out = tmp_path / "adapter"
    assert main(["export", "--checkpoint", str(last), "--adapter", "--out", str(out)]) == 0
    at_the_end = load_file(whole / "export" / "adapter_model.safetensors")
    for name, tensor in load_file(out / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, at_the_end[name])
    base = AutoModelForCausalLM.from_pretrained(pair_folder() / "student", dtype=torch.float32)
    unlike = logits_of(base)
    by_peft = logits_of(PeftModel.from_pretrained(base, out))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits_of(merged), by_peft, rtol=1e-3, atol=1e-3)
    assert (by_peft - unlike).abs().max() > 0.1


def test_the_base_in_the_trainers_memory_teaches_as_a_copy_of_its_own(
    ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the solution first. A rank dies: the replica asks the one that follows it."""
    lines = [
        json.dumps({"prompt": p.prompt, "answer": p.answer, "shown": f"{p.worked}\n{p.prompt}"})
        for p in ChainSumGenerator(3, 2, "train", 0).take(24)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines) + "\n")
    settings = (
        *(f"cluster.address={ray_address}", "run.steps=3", *_LORA, "run.checkpoint_every=1"),
        *("data.kind=jsonl", f"data.path={tmp_path}/sums.jsonl", "data.shuffle=false"),
        *(
            "data.fields.teacher_prompt=shown",
            "data.max_prompt_tokens=32",
            "tip.rule=all",
        ),
    )
    copied, asked = tmp_path / "copied", tmp_path / "asked"
    run(copied, *settings, f"teacher.path={pair_folder()}/student")
    with monkeypatch.context() as patch:
        signal_in_steps(patch, {2: (0, signal.SIGKILL)})
        ranks = ("trainer.ranks=2", "trainer.zero_stage=1")
        run(asked, *settings, "teacher.kind=self", "teacher.path=null", *ranks)
    first, second = rows(copied), rows(asked)
    assert max(row["sync/gap_mean"] for row in first) < 1e-4
    assert first[0]["train/loss"] > 0.01
    for one, again in zip(first, second, strict=True):
        for name in _SAME:
            assert again[name] == pytest.approx(one[name], rel=1e-3), name
    assert second[-1]["train/restarts"] == 1
