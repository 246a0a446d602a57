"""launch/single_node.sh for real: one step of the demo on a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import SMALL, rows

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_a_config_of_ones_own_is_trained_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("inherit: demo\nrun: {steps: 1, output_dir: here}\n")
    done = subprocess.run(
        ["bash", ROOT / "launch" / "single_node.sh", "mine.yaml", *SMALL],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "VIRTUAL_ENV": sys.prefix,
            "OPD_RAY_SETUP": "none",
        },
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    assert len(rows(tmp_path / "here")) == 1
