"""Runs that write a step ahead: whole, resumed, and with trainer ranks that die and hang."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from launching import rows
from safetensors.torch import load_file
from shared_actors import SharedActors, shared_actors

from opd_ray.pools.trainers import TrainerGroup

_SETTINGS = (
    *("run.steps=5", "run.checkpoint_every=2", "run.keep_checkpoints=9", "run.export_at_end=true"),
    *("trainer.ranks=2", "trainer.zero_stage=2", "trainer.learning_rate=5e-5"),
    "trainer.answer_timeout_s=15",
    # Both signals, and rollouts that are written while a rank dies.
    *("run.lag=1", "teacher.signal=hidden", "tip.rescore=true"),
)
# The first test of the file starts six processes with engines, on a machine that may be busy.
pytestmark = pytest.mark.timeout(1200)

_SAME = (
    *("train/loss", "train/kept_tokens", "train/grad_norm", "train/learning_rate"),
    *("rollout/tokens", "rollout/weights_version", "lag/age", "lag/log_ratio_mean"),
)


@pytest.fixture(scope="module")
def actors(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedActors]:
    with shared_actors(tmp_path_factory.mktemp("actors"), ray_address, *_SETTINGS) as shared:
        yield shared


@pytest.fixture(scope="module")
def whole(actors: SharedActors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole") / "run"
    actors.run(output)
    return output


def assert_same_student(one: Path, other: Path) -> None:
    first, second = (load_file(run / "export" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-5, msg=name)


def assert_same_rows(ones: list[dict[str, float]], others: list[dict[str, float]]) -> None:
    for one, other in zip(ones, others, strict=True):
        for name in _SAME:
            # A ratio's logarithm may be next to nothing.
            same = pytest.approx(one[name], rel=1e-3, abs=1e-6)
            assert other[name] == same, (name, one["step"])


def test_rollouts_are_a_step_old(whole: Path) -> None:
    ones = rows(whole)
    assert [row["rollout/weights_version"] for row in ones] == [0, 0, 1, 2, 3]
    assert [row["lag/age"] for row in ones] == [0, 1, 1, 1, 1]
    assert ones[0]["lag/effective_sample_share"] == pytest.approx(1, abs=1e-5)
    assert ones[0]["sync/gap_mean"] < 1e-4
    for row in ones[1:]:
        # The student has moved since it wrote, a little.
        assert "sync/gap_mean" not in row
        assert 0.5 < row["lag/effective_sample_share"] < 1
        assert abs(row["lag/log_ratio_mean"]) > 1e-6


def test_resumed(actors: SharedActors, whole: Path, tmp_path: Path) -> None:
    resumed = tmp_path / "resumed"
    actors.run(resumed, f"run.resume={whole / 'checkpoints' / 'step_00000002'}")
    others = rows(resumed)
    assert [row["step"] for row in others] == [3, 4, 5]
    assert_same_rows(rows(whole)[2:], others)
    assert_same_student(whole, resumed)


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


def test_a_rank_that_dies_and_one_that_hangs(
    actors: SharedActors,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken"
    # The fourth step is taken with a dead rank, then the third and the fourth, and the fifth with
    # one that is stopped.
    signal_in_steps(monkeypatch, {3: (1, signal.SIGKILL), 6: (0, signal.SIGSTOP)})
    actors.run(broken)
    said = capsys.readouterr().err
    assert "all ranks start again and go on from step 2 (checkpoint step_00000002), 1 step" in said
    assert "all ranks start again and go on from step 4 (checkpoint step_00000004), 0 steps" in said
    assert "no answer for 15 s (trainer.answer_timeout_s)" in said
    others = rows(broken)
    assert [row["step"] for row in others] == [1, 2, 3, 4, 5]
    assert [row["train/restarts"] for row in others] == [0, 0, 1, 1, 2]
    assert_same_rows(rows(whole), others)
    assert_same_student(whole, broken)
