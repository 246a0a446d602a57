"""One run with several of everything, and what becomes of its checkpoint afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from in_process import run
from launching import rows
from safetensors.torch import load_file

from opd_ray.cli import main

_MANY = (
    "run.steps=3",
    "run.export_at_end=true",
    "trainer.ranks=2",
    "trainer.zero_stage=3",
    "trainer.micro_batch_tokens=128",
    "trainer.cpus_per_rank=0.3",
    "rollout.actors=2",
    "rollout.cpus_per_actor=0.3",
    "rollout.max_num_seqs=4",
    "teacher.replicas=2",
    "teacher.cpus_per_replica=0.3",
    "scoring=exact",
    "tip.rho_schedule=linear",
    "tip.rho=1.0",
    "tip.rho_end=0.0",
    "tip.rho_schedule_steps=2",
    "eval.kl_prompts=8",
)


def test_several_of_everything(ray_address: str, tmp_path: Path) -> None:
    output, joined = tmp_path / "run", f"cluster.address={ray_address}"
    heldout = (
        "eval.tasks=[{name: heldout, task: chain_sum, problems: 8, samples: 2, "
        "data: {kind: chain_sum, chain_sum: {split: heldout, count: 8}, max_prompt_tokens: 32}}]"
    )
    run(output, *_MANY, heldout, joined)
    steps = rows(output)
    assert [round(row["tip/kept_fraction"], 1) for row in steps] == [1.0, 0.5, 0.0]
    # The last step keeps nothing on any rank: it is skipped, and nothing hangs.
    assert [row["train/skipped"] for row in steps] == [0.0, 0.0, 1.0]
    # Rollouts are written by the weights of the step before.
    assert [row["rollout/weights_version"] for row in steps] == [0, 1, 2]
    assert all(row["sync/gap_mean"] < 1e-4 for row in steps)
    assert {"memory/trainer-1_bytes", "memory/rollout-1_bytes", "memory/teacher-1_bytes"} <= set(
        steps[0]
    )
    for row in steps:
        tokens, kept = row["rollout/tokens"], row["train/kept_tokens"]
        assert row["teacher/replicas"] == 2
        assert row["teacher/retries"] == 0
        assert row["teacher/tokens_per_second"] > 0
        assert 0 < row["teacher/batch_fill"] <= 1
        assert 0 <= row["teacher/bottleneck_share"] < 1
        assert 0 <= row["teacher/wait_mean_seconds"] <= row["teacher/wait_max_seconds"]
        assert sum(row[f"teacher/replica/teacher-{i}/tokens"] for i in (0, 1)) > tokens
        # Exact scores look at every row once, then the kept ones travel.
        per_row = row["teacher/exact_scoring_bytes"] / tokens
        assert per_row > 0
        assert row["teacher/signal_bytes"] == pytest.approx(per_row * kept)
    evaluations = [
        json.loads(line)
        for line in (output / "metrics.jsonl").read_text().splitlines()
        if "eval/kl" in line
    ]
    assert [row["step"] for row in evaluations] == [0, 3]
    wanted = {f"eval/heldout/{name}" for name in ("accuracy", "mean@2", "pass@2", "maj@2")}
    assert wanted <= set(evaluations[0])

    # The sharded checkpoint, put together without its ranks, is the student that the run exported.
    checkpoint = output / "checkpoints" / "step_00000003"
    exported = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(exported)]) == 0
    ours, runs_own = (
        load_file(folder / "model.safetensors") for folder in (exported, output / "export")
    )
    assert ours.keys() == runs_own.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, runs_own[name]), name

    figures = tmp_path / "figures"
    command = ["eval", "--config", "demo", heldout, joined]
    assert main([*command, "--model", str(exported), "--out", str(figures)]) == 0
    found = json.loads((figures / "results.json").read_text())["figures"]
    assert found["eval/heldout/accuracy"] == evaluations[1]["eval/heldout/accuracy"]
