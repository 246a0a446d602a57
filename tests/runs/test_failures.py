"""An actor that dies and may not be replaced ends a run with its cause; Ctrl-C leaves a checkpoint.

Those that are replaced are in test_rollout_deaths_run.py, test_teacher_deaths_run.py and
test_trainer_deaths_run.py.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from launching import actor_process, end, family, finish, start, wait_for_step

from opd_ray.output.checkpoint import CheckpointStore

_MANY = "run.steps=100000"


@pytest.mark.parametrize(
    ("actor_class", "name"), [("RolloutActor", "rollout-0"), ("TrainerActor", "trainer-0")]
)
def test_a_killed_actor_ends_the_run_and_is_named(
    tmp_path: Path, actor_class: str, name: str
) -> None:
    output = tmp_path / "run"
    run = start(output, _MANY, "rollout.max_restarts=0", "trainer.max_restarts=0")
    try:
        wait_for_step(run, output, 2)
        everyone = family(run)
        actor_process(run, actor_class).kill()
        begin = time.monotonic()
        code, text = finish(run, output, timeout_s=60)
    finally:
        end(run)
    assert code == 1, text
    assert f"{name}" in text
    assert "failed" in text
    assert time.monotonic() - begin < 60
    _assert_gone(everyone)


def test_ctrl_c_writes_a_checkpoint_and_leaves_no_process(tmp_path: Path) -> None:
    """Of what it ran, nothing could be reached from another machine."""
    output = tmp_path / "run"
    run = start(output, _MANY)
    try:
        wait_for_step(run, output, 2)
        everyone = family(run)
        assert _open_to_others(everyone) == []
        # As a terminal does it: the whole process group hears it.
        os.killpg(run.pid, signal.SIGINT)
        code, text = finish(run, output, timeout_s=60)
    finally:
        end(run)
    assert code == 130, text
    newest = CheckpointStore(output / "checkpoints", keep=2).newest()
    assert newest is not None, text
    assert newest[1].step >= 2
    _assert_gone(everyone)


def _open_to_others(processes: list[psutil.Process]) -> list[str]:
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


def _assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive, f"left behind: {[p.cmdline() for p in alive]}"
