"""A run whose teacher's answers are recorded, and the same run again without the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from in_process import run
from launching import rows
from safetensors.torch import load_file

RUN = ("run.steps=2", "run.export_at_end=true", "rollout.max_new_tokens=16")


def test_a_replayed_run_trains_the_same_weights_without_the_teacher(
    ray_address: str, tmp_path: Path
) -> None:
    options = (*RUN, f"cluster.address={ray_address}", f"teacher.cache_dir={tmp_path / 'answers'}")
    recorded, replayed = tmp_path / "recorded", tmp_path / "replayed"
    run(recorded, *options, "teacher.cache=record")
    run(replayed, *options, "teacher.path=/gone/teacher", "teacher.cache=replay")
    for one, other in zip(rows(recorded), rows(replayed), strict=True):
        for name in ("train/loss", "train/kept_tokens", "rollout/tokens", "scores/reverse_kl_mean"):
            assert other[name] == pytest.approx(one[name], rel=1e-6), name
    one, other = (
        load_file(folder / "export" / "model.safetensors") for folder in (recorded, replayed)
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-6, atol=1e-7, msg=name)
