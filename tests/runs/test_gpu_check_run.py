"""The GPU check on a CPU: a part of every file passes, some as whoever has a GPU runs them.

A process of its own for each part is what tests/unit/benchmarks/test_gpu_check.py is about. Here
those without vLLM share one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_check.findings import read_findings
from gpu_check.part import PARTS
from gpu_check.runner import surroundings

ROOT = Path(__file__).parents[2]
# Of each file the last one that runs here; the others of it differ by an argument.
CHOSEN = {part.module: part for part in PARTS if part.gpus < 2 and not part.not_on_cpus}.values()
AWAY = ("zero_offload", "sync_ipc", "sync_nccl")
# A process has one kind of vLLM engine: vLLM gives its worker the methods of one alone.
TOGETHER = [p for p in CHOSEN if "vllm" not in p.needs and p.name != "divergences"]
AS_A_USER = [p for p in CHOSEN if p not in TOGETHER]
_CHILD = """
import sys
from gpu_check.child import main
from gpu_check.part import PARTS

folder, *names = sys.argv[1:]
asked = [part for part in PARTS if part.name in names]
sys.exit(max(main(p.module, p.argument, "cpu", f"{folder}/{p.name}.json") for p in asked))
"""


@pytest.mark.timeout(1500)
def test_parts_pass_as_a_user_runs_them(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "launch" / "gpu_check.sh"), "--device", "cpu", "--only"]
    command += [*(part.name for part in AS_A_USER), *AWAY]
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
    passed = {name: len(part["findings"].get("checks", [])) for name, part in parts.items()}
    assert passed["divergences"] > 40
    graphs = {figure["what"] for figure in parts["cuda_graphs"]["findings"]["figures"]}
    assert {"tokens/s with graphs", "tokens/s without graphs"} <= graphs
    assert all(passed[part.name] for part in AS_A_USER), passed


@pytest.mark.timeout(1500)
def test_parts_pass_in_one_process(tmp_path: Path) -> None:
    folders = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "benchmarks"))
    around = surroundings(TOGETHER[0], "cpu", tmp_path / "scratch")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path), *(part.name for part in TOGETHER)],
        env={**os.environ, **around, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {part.name: read_findings(tmp_path / f"{part.name}.json") for part in TOGETHER}
    assert all(findings["checks"] for findings in found.values()), found
