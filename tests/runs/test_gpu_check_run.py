"""The GPU check as whoever has a GPU runs it, on a CPU: every part passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1500)
def test_all_parts_pass_on_a_cpu(tmp_path):
    command = ["bash", str(ROOT / "launch" / "gpu_check.sh"), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--minutes", "24", "--patience", "4"],
        env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
    )
    folder = tmp_path / "gpu_check_report"
    parts = {
        part["part"]: part for part in json.loads((folder / "report.json").read_text())["parts"]
    }
    assert done.returncode == 0, (folder / "report.md").read_text()
    left = {name: part["reason"] for name, part in parts.items() if part["state"] != "passed"}
    assert set(left) == {"demo_teacher", "demo_trainer", "sync_nccl"}, left
    assert all(reason.startswith("needs 2 GPUs") for reason in left.values())
    graphs = {figure["what"] for figure in parts["cuda_graphs"]["findings"]["figures"]}
    assert {"tokens/s with graphs", "tokens/s without graphs"} <= graphs
    checks = [check for part in parts.values() for check in part["findings"].get("checks", [])]
    assert len(checks) > 80
