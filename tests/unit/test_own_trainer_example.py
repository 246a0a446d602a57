"""examples/own_trainer: the filter and the loss in a loop without Ray, in under 40 lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parents[2] / "examples" / "own_trainer" / "train.py"
LEAVES = """
import runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
engines = {"ray", "vllm", "deepspeed"} & {*sys.modules}
assert not engines, engines
"""


def test_a_student_learns_from_half_of_its_tokens_without_any_engine() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"step \d+: KL ([\d.]+), kept (\d+)%", done.stdout)
    assert len(steps) == 15
    divergences, kept = np.array(steps, dtype=float).T
    assert divergences[5:].mean() < 0.85 * divergences[:4].mean()
    assert (kept >= 48).all()  # half of each response, rounded down
    assert (kept <= 50).all()
