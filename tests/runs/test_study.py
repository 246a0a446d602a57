"""A study on the real engines: equal cells are equal, and a second call runs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import SMALL

from opd_ray.cli import main

CONFIG = """
inherit: demo
run: {steps: 2, output_dir: OUTPUT}
study:
  seeds: [3]
  arms:
    - {name: first, tip: {rule: soft_or, rho: 0.5}}
    - {name: other, tip: {rule: teachability, rho: 0.1}}
    - {name: again, tip: {rule: soft_or, rho: 0.5}}
"""
# Of SMALL, what leaves a study nothing to compare.
EVALUATED = (
    *(text for text in SMALL if not text.startswith("eval.")),
    "eval.every=0",
    "eval.kl_prompts=8",
    "eval.tasks[0].problems=16",
    "eval.teacher_accuracy=false",
)


def run_study(config: Path, ray_address: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a study says."""
    joined = f"cluster.address={ray_address}"
    assert main(["study", "--config", str(config), *EVALUATED, joined]) == 0
    return capsys.readouterr().err


def rows(output: Path, arm: str) -> list[dict[str, float]]:
    text = (output / "cells" / arm / "seed_3" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_cells_begin_alike_and_are_run_once(
    ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, config = tmp_path / "study", tmp_path / "study.yaml"
    config.write_text(CONFIG.replace("OUTPUT", str(output)))
    assert "3 cells, 0 finished" in run_study(config, ray_address, capsys)

    # Between the two equal cells another one trained: weights and optimizer must be as at first. Up
    # to rounding: which rollouts the teacher reads together depends on when they were written.
    first, again = rows(output, "first"), rows(output, "again")
    assert [row["step"] for row in first] == [0, 1, 2, 2]
    assert [row.keys() for row in first] == [row.keys() for row in again]
    for one, same in zip(first, again, strict=True):
        for name, value in one.items():
            if name.endswith("_seconds"):
                continue
            if name.startswith(("train/", "rollout/", "tip/", "scores/", "eval/")):
                assert abs(value - same[name]) <= 1e-4 * max(1.0, abs(value)), name
    other = rows(output, "other")
    assert other[0] == first[0]
    assert other[1]["rollout/tokens"] == first[1]["rollout/tokens"]
    assert other[1]["train/kept_tokens"] < first[1]["train/kept_tokens"]
    assert other[-1]["eval/kl"] != first[-1]["eval/kl"]

    files = ("results.md", "learning_curves.png", "overlaps.png")
    for name in files:
        (output / name).unlink()
    results = {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}
    assert len(results) == 3
    assert "3 cells, 3 finished, 0 to run" in run_study(config, ray_address, capsys)
    assert {path: path.stat().st_mtime_ns for path in results} == results
    assert all((output / name).stat().st_size for name in files)
