"""examples/trl_trainer: the filter and the loss in TRL's trainer, where TRL is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "trl_trainer" / "train.py"


@pytest.mark.skipif(find_spec("trl") is None, reason="the lock has no TRL: pip install trl")
def test_a_student_learns_from_half_of_its_tokens_under_trl(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"step \d+: KL ([\d.]+), kept (\d+)%", done.stdout)
    assert len(steps) == 15
    divergences, kept = np.array(steps, dtype=float).T
    assert divergences[10:].mean() < 0.75 * divergences[:5].mean()
    assert (kept >= 48).all()  # half of each response, rounded down
    assert (kept <= 50).all()


def test_what_is_replaced_is_short() -> None:
    body = SCRIPT.read_text().partition("    def compute_loss")[2].partition("\n\n\n")[0]
    assert len(body.splitlines()) == 22
    assert "`compute_loss`, 22 lines," in SCRIPT.with_name("README.md").read_text()
