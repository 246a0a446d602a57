"""Ten steps equal five steps, a kill, and five resumed ones."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from in_process import run
from launching import end, finish, rows, start, wait_for_step
from safetensors.torch import load_file

_TEN = ("run.steps=10", "run.export_at_end=true")
_SAME = (
    "train/loss",
    "train/kept_tokens",
    "train/grad_norm",
    "train/learning_rate",
    "rollout/tokens",
)


def killed_past_its_checkpoint(output: Path) -> None:
    """A run that is killed after its sixth step, so that something must be forgotten."""
    process = start(output, *_TEN, "run.checkpoint_every=5")
    try:
        wait_for_step(process, output, 6)
    finally:
        end(process)


def test_a_killed_and_resumed_run_ends_where_an_unbroken_one_does(
    ray_address: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # Side by side: most of a run so short is starting up, on one core.
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(killed_past_its_checkpoint, broken)
        run(whole, *_TEN, f"cluster.address={ray_address}")
        killed.result()
    # A new process with new actors has nothing but what was written.
    code, text = finish(start(broken, *_TEN, "run.checkpoint_every=5"), broken)
    assert code == 0, text
    assert "at step 5" in text
    parts = [json.loads(line) for line in (broken / "history.jsonl").open()]
    assert [(part.get("from_step"), part.get("finished")) for part in parts] == [
        *((0, None), (5, None), (None, 10))
    ]
    assert parts[0]["prompts"] == parts[1]["prompts"]

    first, second = rows(whole), rows(broken)
    assert [row["step"] for row in second] == list(range(1, 11))
    # The demo's cosine from 7e-4 on, without warm-up: by hand, not from one run to the other alone.
    cosine = [7e-4 * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert [row["train/learning_rate"] for row in second] == pytest.approx(cosine, rel=1e-6)
    for one, other in zip(first, second, strict=True):
        for name in _SAME:
            assert abs(one[name] - other[name]) <= 1e-4 * max(1.0, abs(one[name])), name
    one = load_file(whole / "export" / "model.safetensors")
    other = load_file(broken / "export" / "model.safetensors")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=name)
