"""An actor that dies and may not be replaced ends a run with its cause; Ctrl-C leaves a checkpoint.

The second run is started by launch/single_node.sh. Actors that are replaced are in
test_disturbed_runs.py and test_lagging_runs.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
from launching import (
    SMALL,
    actor_process,
    end,
    family,
    finish,
    start,
    start_command,
    wait_for_step,
)

from opd_ray.output.checkpoint import CheckpointStore

_MANY = "run.steps=100000"
_SINGLE_NODE = Path(__file__).parents[2] / "launch" / "single_node.sh"


def test_a_killed_actor_ends_the_run_and_is_named(tmp_path: Path) -> None:
    output = tmp_path / "run"
    run = start(output, _MANY, "trainer.max_restarts=0")
    try:
        wait_for_step(run, output, 2)
        everyone = family(run)
        actor_process(run, "TrainerActor").kill()
        code, text = finish(run, output)
    finally:
        end(run)
    assert code == 1, text
    assert "trainer-0" in text
    assert "failed" in text
    assert_gone(everyone)


def test_ctrl_c_writes_a_checkpoint_and_leaves_no_process(tmp_path: Path) -> None:
    """Of what it ran, nothing could be reached from another machine."""
    (tmp_path / "mine.yaml").write_text("inherit: demo\nrun: {steps: 100000, output_dir: here}\n")
    output = tmp_path / "here"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Short, as the paths of sockets must be, and without a Ray of others that would be joined.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        run = start_command(
            ["bash", str(_SINGLE_NODE), "mine.yaml", *SMALL],
            output,
            env={**kept, "VIRTUAL_ENV": sys.prefix, "OPD_RAY_SETUP": "none", "RAY_TMPDIR": folder},
            cwd=tmp_path,
        )
        _stopped_by_ctrl_c(run, output)


def _stopped_by_ctrl_c(run: subprocess.Popen[str], output: Path) -> None:
    try:
        wait_for_step(run, output, 2)
        everyone = family(run)
        assert open_to_others(everyone) == []
        # As a terminal does it: the whole process group hears it.
        os.killpg(run.pid, signal.SIGINT)
        code, text = finish(run, output)
    finally:
        end(run)
    assert code == 130, text
    newest = CheckpointStore(output / "checkpoints", keep=2).newest()
    assert newest is not None, text
    assert newest[1].step >= 2
    assert_gone(everyone)


def open_to_others(processes: list[psutil.Process]) -> list[str]:
    """The addresses at which processes listen that are no loopback addresses."""
    loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")  # the last: IPv4 on a socket of IPv6
    found: list[str] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a worker that had nothing to do
            found += [
                f"{one.laddr.ip}:{one.laddr.port} {process.name()}"
                for one in process.net_connections("tcp")
                if one.status == psutil.CONN_LISTEN and one.laddr.ip not in loopback
            ]
    return found


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive, f"left behind: {[p.cmdline() for p in alive]}"
