"""A study on the real engines: equal cells are equal, and a second call runs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from launching import SMALL

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


def run_study(config: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "opd_ray", "study", "--config", str(config), *EVALUATED, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "RAY_ADDRESS": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def rows(output: Path, arm: str) -> list[dict[str, float]]:
    text = (output / "cells" / arm / "seed_3" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_cells_begin_alike_and_are_run_once(tmp_path: Path) -> None:
    output, config = tmp_path / "study", tmp_path / "study.yaml"
    config.write_text(CONFIG.replace("OUTPUT", str(output)))
    assert "3 cells, 0 finished" in run_study(config)

    # Between the two equal cells another one trained: weights and optimizer must be as at first. Up
    # to rounding: which rollouts the teacher reads together depends on when they were written.
    first, again = rows(output, "first"), rows(output, "again")
    assert [row["step"] for row in first] == [0, 1, 2, 2]
    assert [row.keys() for row in first] == [row.keys() for row in again]
    for one, same in zip(first, again, strict=True):
        for name, value in one.items():
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
    assert "3 cells, 3 finished, 0 to run" in run_study(config)
    assert {path: path.stat().st_mtime_ns for path in results} == results
    assert all((output / name).stat().st_size for name in files)
