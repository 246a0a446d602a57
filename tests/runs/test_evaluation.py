"""An evaluation that was killed and resumed gives the figures of an unbroken one by two actors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from launching import end

from opd_ray.cli import main

_TASK = (
    "eval.tasks=[{name: sums, task: chain_sum, problems: 64, "
    "data: {kind: chain_sum, chain_sum: {split: heldout, count: 64}, max_prompt_tokens: 32}}]"
)
_ARGUMENTS = [
    *("eval", "--config", "demo", "--greedy", "--samples", "8"),
    *(_TASK, "cluster.num_cpus=2", "rollout.max_num_seqs=16"),
]


def start(out: Path) -> subprocess.Popen[str]:
    """The command in a process group of its own, printing to a file beside its folder."""
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "opd_ray", *_ARGUMENTS, "--out", str(out)],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "RAY_ADDRESS": ""},
        )


def sampled(out: Path) -> list[str]:
    """The lines of the sampled records, a cut-off one included."""
    path = out / "sums" / "sampled.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_killed_and_resumed_like_unbroken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = start(broken)
    try:
        deadline = time.monotonic() + 200
        while len(sampled(broken)) < 5:
            assert run.poll() is None, broken.with_suffix(".log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        end(run)
    before = sampled(broken)
    assert 5 <= len(before) < 64
    assert not (broken / "results.json").exists()
    # From here on in this process, which saves the imports.
    assert main([*_ARGUMENTS, "--out", str(broken)]) == 0
    # What was there stayed: those problems were not asked again.
    complete = [line for line in before if line.endswith("}")]
    assert sampled(broken)[: len(complete)] == complete

    assert main([*_ARGUMENTS, "--out", str(whole), "--actors", "2"]) == 0
    for name in ("greedy", "sampled"):
        one, other = (
            {
                record["id"]: record
                for record in map(json.loads, (out / "sums" / f"{name}.jsonl").open())
            }
            for out in (whole, broken)
        )
        assert len(one) == 64
        assert one == other
    figures = json.loads((whole / "results.json").read_text())["figures"]
    assert json.loads((broken / "results.json").read_text())["figures"] == figures
    mean, two, eight = (figures[f"eval/sums/{name}"] for name in ("mean@8", "pass@2", "pass@8"))
    assert 0 < mean < two < eight <= 1
    assert 0 < figures["eval/sums/maj@8"] <= eight
    assert 0 < figures["eval/sums/accuracy"] < 1

    capsys.readouterr()
    # Everything is there: the same command only shows it, and another one is refused.
    assert main([*_ARGUMENTS, "--out", str(whole)]) == 0
    assert "| sums | 64 " in capsys.readouterr().out
    assert not ray.is_initialized()
    assert main([*_ARGUMENTS, "--out", str(whole), "--temperature", "0.5"]) == 2
    assert "sampled.temperature: 1.0 -> 0.5" in capsys.readouterr().err
