"""Runs on the real engines that train early, and that write ahead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from in_process import run
from launching import rows
from safetensors.torch import load_file


def same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(run / "export" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_that_trains_early_ends_with_the_same_weights(
    ray_address: str, tmp_path: Path
) -> None:
    settings = (
        f"cluster.address={ray_address}",
        *("run.steps=2", "run.export_at_end=true", "tip.normalise_over=rollout", "tip.rho=0.5"),
        # Responses of all lengths, of which two at a time are written: a tail of many waves.
        *("rollout.max_num_seqs=2", "rollout.temperature=1.5", "trainer.micro_batch_tokens=64"),
        *("trainer.ranks=2", "trainer.zero_stage=2", "trainer.max_grad_norm=0.01"),
    )
    plain, early = tmp_path / "plain", tmp_path / "early"
    run(plain, *settings)
    run(early, *settings, "run.overlap=true")
    ones, others = rows(plain), rows(early)
    for one, other in zip(ones, others, strict=True):
        assert other["train/waves"] > 1
        assert one["train/grad_norm"] > 0.01  # it was clipped
        for name in ("train/loss", "train/grad_norm", "train/kept_tokens", "rollout/tokens"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
    same_weights(plain, early)


def test_a_run_that_writes_ahead_and_goes_on_ends_with_the_same_weights(
    ray_address: str, tmp_path: Path
) -> None:
    settings = ("run.steps=4", "run.export_at_end=true", "run.lag=1", "trainer.learning_rate=5e-5")
    exact = (
        f"cluster.address={ray_address}",
        "teacher.signal=hidden",
        "tip.rescore=true",
        "run.keep_checkpoints=9",
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(whole, *settings, *exact, "run.checkpoint_every=1")
    ones = rows(whole)
    assert [row["rollout/weights_version"] for row in ones] == [0, 0, 1, 2]
    assert [row["lag/age"] for row in ones] == [0, 1, 1, 1]
    assert ones[0]["lag/effective_sample_share"] == pytest.approx(1, abs=1e-5)
    assert ones[0]["sync/gap_mean"] < 1e-4
    for row in ones[1:]:
        # The student has moved since it wrote, a little.
        assert "sync/gap_mean" not in row
        assert 0.5 < row["lag/effective_sample_share"] < 1
        assert abs(row["lag/log_ratio_mean"]) > 1e-6
    checkpoint = whole / "checkpoints" / "step_00000002"
    run(resumed, *settings, *exact, f"run.resume={checkpoint}")
    others = rows(resumed)
    for one, other in zip(ones[2:], others, strict=True):
        for name in ("train/loss", "train/kept_tokens", "rollout/tokens", "lag/log_ratio_mean"):
            assert other[name] == pytest.approx(one[name], rel=1e-3), name
    same_weights(whole, resumed)
