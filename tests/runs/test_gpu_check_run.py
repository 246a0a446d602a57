"""The GPU check as whoever has a GPU runs it, on a CPU: a part of every file passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_check.part import PARTS

ROOT = Path(__file__).parents[2]
# Of each file the last one that runs here; the others of it differ by an argument.
CHOSEN = {part.module: part for part in PARTS if part.gpus < 2 and not part.not_on_cpus}.values()
AWAY = ("zero_offload", "sync_ipc", "sync_nccl")


@pytest.mark.timeout(1500)
def test_a_part_of_every_file_passes_on_a_cpu(tmp_path):
    command = ["bash", str(ROOT / "launch" / "gpu_check.sh"), "--device", "cpu", "--only"]
    command += [*(part.name for part in CHOSEN), *AWAY]
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
    assert sorted(left) == sorted(AWAY), left
    assert left["sync_nccl"].startswith("needs 2 GPUs")
    assert all(left[name].startswith("needs a GPU: ") for name in AWAY[:2]), left
    graphs = {figure["what"] for figure in parts["cuda_graphs"]["findings"]["figures"]}
    assert {"tokens/s with graphs", "tokens/s without graphs"} <= graphs
    checks = [check for part in parts.values() for check in part["findings"].get("checks", [])]
    assert len(checks) > 80
