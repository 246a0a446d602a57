"""Trainer ranks killed and stopped in steps: the run ends where an unbroken one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from in_process import run
from launching import rows
from safetensors.torch import load_file

from opd_ray.pools.trainers import TrainerGroup

_SETTINGS = (
    *("run.steps=5", "run.checkpoint_every=2", "run.export_at_end=true"),
    *("trainer.ranks=2", "trainer.zero_stage=2", "trainer.learning_rate=5e-5"),
    # Both signals, and rollouts that are written while a rank dies.
    *("run.lag=1", "teacher.signal=hidden", "tip.rescore=true"),
)
_SAME = (
    *("train/loss", "train/kept_tokens", "train/grad_norm", "train/learning_rate"),
    *("rollout/tokens", "rollout/weights_version", "lag/age"),
)


def signal_in_steps(patch: pytest.MonkeyPatch, signals: dict[int, tuple[int, int]]) -> None:
    """Send (rank, signal) in the middle of the steps of these numbers, as they are taken."""
    gather, numbers = TrainerGroup._gather, iter(range(1_000_000))

    def gather_with_a_signal(group: TrainerGroup, refs: Sequence[Any], what: str) -> list[Any]:
        if what == "a training step" and (found := signals.get(next(numbers))):
            rank, number = found
            handle = group.ranks[rank][1]
            os.kill(ray.get(handle.__ray_call__.remote(lambda actor: os.getpid())), number)
        return gather(group, refs, what)

    patch.setattr(TrainerGroup, "_gather", gather_with_a_signal)


def test_a_rank_that_dies_and_one_that_hangs_change_nothing(
    ray_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = (f"cluster.address={ray_address}", *_SETTINGS)
    run(whole, *settings)
    # The fourth step is taken with a dead rank, then the third and the fourth, and the fifth with
    # one that is stopped.
    with monkeypatch.context() as patch:
        signal_in_steps(patch, {3: (1, signal.SIGKILL), 6: (0, signal.SIGSTOP)})
        capsys.readouterr()
        run(broken, *settings, "trainer.answer_timeout_s=15")
    said = capsys.readouterr().err
    assert "all ranks start again and go on from step 2 (checkpoint step_00000002), 1 step" in said
    assert "all ranks start again and go on from step 4 (checkpoint step_00000004), 0 steps" in said
    assert "no answer for 15 s (trainer.answer_timeout_s)" in said
    first, second = rows(whole), rows(broken)
    assert [row["step"] for row in second] == [1, 2, 3, 4, 5]
    assert [row["train/restarts"] for row in second] == [0, 0, 1, 1, 2]
    for one, other in zip(first, second, strict=True):
        for name in _SAME:
            assert other[name] == pytest.approx(one[name], rel=1e-3), (name, one["step"])
    student, same = (load_file(out / "export" / "model.safetensors") for out in (whole, broken))
    assert student.keys() == same.keys()
    for name, tensor in student.items():
        torch.testing.assert_close(same[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
