"""examples/notebook.ipynb from its first cell to its last, in a kernel that is connected to a Ray.

One run and one evaluation on real engines, in a process that is not theirs: signal handlers, Ray
and the event loop of the notebook stay as they were.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from opd_ray.output.sinks import read_jsonl
from opd_ray.output.status import Standing, read_status

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"

BEFORE = """
import asyncio, os, signal, sys
os.environ["OMP_NUM_THREADS"] = "1"
import opd_ray
assert not {"torch", "ray", "transformers", "omegaconf", "numpy"} & {*sys.modules}
loop = asyncio.get_running_loop()
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
from opd_ray.cluster.session import use_token
use_token()
import ray
ray.init(address=ADDRESS, log_to_driver=False)
job = ray.get_runtime_context().get_job_id()
handlers = [signal.getsignal(number) for number in HEARD]  # Ray has set its own by now
"""
# While the run is at work: what a handler of its own would be.
SPY = """
import opd_ray.coordinator.loop as loop_module
import time, urllib.request
step, during, exported = loop_module.Coordinator.step, [], []
port = next(node["MetricsExportPort"] for node in ray.nodes())
page = f"http://{ray.util.get_node_ip_address()}:{port}/metrics"
def noting(self, number):
    during.append([signal.getsignal(one) for one in HEARD])
    if number == 19:  # Ray takes up to 10 s to show what it is told
        until = time.monotonic() + 120
        while not exported and time.monotonic() < until:
            with urllib.request.urlopen(page, timeout=30) as answer:
                lines = answer.read().decode().splitlines()
            exported.extend(line for line in lines if line.startswith("ray_opd_ray_"))
            time.sleep(1)
    return step(self, number)
loop_module.Coordinator.step = noting
"""
AFTER = """
import json
from opd_ray.errors import OpdError
try:
    opd_ray.train(opd_ray.load_config("demo", ["rollout.prompts_per_step=0"]))
    refused = ""
except OpdError as error:
    refused = str(error)
json.dumps({
    "connected": ray.is_initialized() and ray.get_runtime_context().get_job_id() == job,
    "handlers": [signal.getsignal(one) for one in HEARD] == handlers,
    "during": len(during) == 20 and all(found == handlers for found in during),
    "rows": len(result.rows), "steps": result.steps,
    "before": result.before["eval/kl"], "after": result.figures["eval/kl"],
    "accuracy": answers.figures["eval/heldout/accuracy"],
    "responses": len(answers.rows),
    "correct": sum(row["correct"] for row in answers.rows),
    "kept": tip.select(scores, seeds_R=np.array([0, 1]), step=0).weights_N.tolist(),
    "export": str(result.paths.export / "model.safetensors"),
    "refused": refused,
    "exported": exported,
})
"""


def code(text: str) -> Any:
    return nbformat.v4.new_code_cell(text)


@pytest.mark.timeout(1200)
def test_the_notebook_runs_and_leaves_its_process_as_it_was(
    tmp_path: Path, ray_address: str
) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [
        code(f"ADDRESS = {ray_address!r}{BEFORE}"),
        code(SPY),
        *notebook.cells,
        code(AFTER),
    ]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1000, resources=where).execute()
    found = json.loads(eval(notebook.cells[-1].outputs[-1]["data"]["text/plain"]))
    assert found["connected"]
    assert found["handlers"]
    assert found["during"]
    assert found["steps"] == 20
    assert found["rows"] == 21  # an evaluation before the first step
    # What the notebook shows is what the run has written.
    rows = read_jsonl(tmp_path / "outputs" / "notebook" / "metrics.jsonl")
    measured = [row["eval/kl"] for row in rows if "eval/kl" in row]
    assert [found["before"], found["after"]] == [measured[0], measured[-1]]
    assert len(set(measured)) == 3  # the student has changed
    assert found["responses"] == 32
    assert found["accuracy"] == found["correct"] / 32
    # Of each response the two tokens with the highest entropy or divergence.
    assert found["kept"] == [0, 1, 1, 0, 1, 0, 1, 0]
    assert (tmp_path / found["export"]).is_file()
    assert "rollout.prompts_per_step" in found["refused"]
    # What Prometheus gets while the run is at work.
    exported = [line for line in found["exported"] if 'run="outputs/notebook"' in line]
    assert any(re.match(r"ray_opd_ray_step\{.* \d+\.0$", line) for line in exported), exported
    assert any('stage="train"' in line for line in exported)
    status = read_status(tmp_path / "outputs" / "notebook")
    assert status.standing is Standing.finished
