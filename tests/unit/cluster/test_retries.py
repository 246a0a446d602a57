"""When a run is started again, and what is left of the one before: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from opd_ray.cluster.retries import Retries, ending
from opd_ray.output.checkpoint import CheckpointStore, RunState

# Keeps the command running that is given as text; PAUSE seconds before each new start.
KEEP = """
import sys
from opd_ray.cluster.retries import Retries, keep_running
from opd_ray.cluster.supervisor import Supervisor
output, limit, pause, leave, code = sys.argv[1:]
with Supervisor(float(leave)) as supervisor:
    command = [sys.executable, "-c", code, output]
    retries = Retries(int(limit), float(pause))
    raise SystemExit(keep_running(command, output, retries, supervisor))
"""
# Notes its arguments, and leaves a checkpoint of step N in its Nth start while N <= STEPS.
START = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from dataclasses import asdict
from opd_ray.output.checkpoint import CheckpointStore, RunState
output = Path(sys.argv[1])
with (output / "starts").open("a") as file:
    print(*sys.argv[2:], file=file)
start = len((output / "starts").read_text().splitlines())
def checkpoint(step):
    state = RunState(step, 0, 9, {}, [], {})
    CheckpointStore(output / "checkpoints", 2).save(state, lambda folder: None)
"""


def keep(output: Path, code: str, limit: int = 2, pause: float = 0.01) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KEEP, str(output), str(limit), str(pause), "0.3", START + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def starts(output: Path) -> list[str]:
    """What each start was told."""
    return (output / "starts").read_text().splitlines()


@pytest.mark.parametrize(
    ("codes", "pauses"),
    [
        # Each longer than the one before, and no more than five minutes.
        ([1] * 9, [5, 10, 20, 40, 80, 160, 300, 300, None]),
        ([-9], [5]),
        ([0], [None]),
        ([130], [None]),
        ([141], [None]),
        ([2], [None]),
        # What was accepted once is not bad input the second time.
        ([1, 2, 130], [5, 10, None]),
    ],
)
def test_what_is_started_again_and_how_soon(codes: list[int], pauses: list[float | None]) -> None:
    retries = Retries(8)
    assert [retries.pause(code, got_further=False) for code in codes] == pauses


def test_a_new_checkpoint_begins_the_count_anew() -> None:
    retries = Retries(2)
    further = [True, False, False, True, False, False, False]
    assert [retries.pause(1, got_further=got) for got in further] == [5, 5, 10, 5, 5, 10, None]
    assert Retries(0).pause(1, got_further=True) is None


def test_how_a_start_ended_in_words() -> None:
    assert ending(1) == "ended with exit code 1"
    assert ending(-9) == "was killed by SIGKILL"


def test_a_run_goes_on_from_its_checkpoints_until_it_is_done(tmp_path: Path) -> None:
    # Killed three times, with a checkpoint of its own from the second start on.
    code = "checkpoint(start) if start > 1 else 0\nstart > 3 or os.kill(os.getpid(), 9)"
    run = keep(tmp_path, code, limit=1)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert starts(tmp_path) == ["", "", "run.resume=auto", "run.resume=auto"]
    assert said.splitlines() == [
        "opd-ray: the run was killed by SIGKILL without a new checkpoint (start 1 of 2 in a row "
        "that may: --retries 1); it is started again in 0.01 s",
        *["opd-ray: the run was killed by SIGKILL; it is started again in 0.01 s"] * 2,
    ]


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path: Path) -> None:
    state = RunState(7, 0, 9, {}, [], {})
    CheckpointStore(tmp_path / "checkpoints", 2).save(state, lambda folder: None)
    # As with run.resume=never, when the second start has come as far as its first checkpoint.
    code = "import shutil\nstart == 2 and (shutil.rmtree(output / 'checkpoints'), checkpoint(3))\n"
    run = keep(tmp_path, code + "sys.exit(start < 3)")
    _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert starts(tmp_path) == ["", "", "run.resume=auto"]


def test_one_that_gets_nowhere_is_given_up(tmp_path: Path) -> None:
    run = keep(tmp_path, "os.kill(os.getpid(), 11)", limit=1)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 128 + 11
    assert len(starts(tmp_path)) == 2
    assert said.splitlines()[1] == (
        "opd-ray: given up: the run was killed by SIGSEGV without a new checkpoint (start 2 of 2 "
        "in a row that may: --retries 1)"
    )


def test_a_run_that_was_accepted_once_does_not_end_as_bad_input(tmp_path: Path) -> None:
    run = keep(tmp_path, "sys.exit(1 if start == 1 else 2)", limit=1)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1
    assert len(starts(tmp_path)) == 2
    assert "given up: the run ended with exit code 2 without a new checkpoint" in said


def test_bad_input_is_left_as_it_is_said(tmp_path: Path) -> None:
    run = keep(tmp_path, "sys.exit(2)")
    _, said = run.communicate(timeout=120)
    assert (run.returncode, said, len(starts(tmp_path))) == (2, "", 1)


def test_what_a_killed_run_leaves_behind_is_ended_before_the_next_start(tmp_path: Path) -> None:
    # A process in a session of its own, whose parent is gone, as Ray's are.
    code = (
        "if start == 1:\n"
        "    shell = f'setsid sleep 60 & echo $! > {output}/orphan'\n"
        "    subprocess.run(['bash', '-c', shell])\n"
        "    os.kill(os.getpid(), 9)\n"
        "orphan = int((output / 'orphan').read_text())\n"
        "sys.exit(Path('/proc', str(orphan)).exists())\n"
    )
    run = keep(tmp_path, code)
    _, said = run.communicate(timeout=120)
    orphan = (tmp_path / "orphan").read_text().strip()
    assert run.returncode == 0, said
    first = said.splitlines()[0]
    assert first == f"opd-ray: killed what the run had left behind: sleep ({orphan})"


WAITING = """
from opd_ray.signals import on_stop
asked = []
with on_stop(lambda: asked.append(1)):
    print("waiting", flush=True)
    deadline = time.monotonic() + 20
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # for a signal that comes twice
(output / "asked").write_text(str(len(asked)))
sys.exit(130)
"""


def wait_for(run: subprocess.Popen[str], line: str) -> None:
    assert run.stdout is not None
    assert run.stdout.readline() == line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_the_run_once_and_it_is_not_started_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    run = keep(tmp_path, WAITING)
    wait_for(run, "waiting\n")
    (child,) = psutil.Process(run.pid).children()
    child.send_signal(number)  # as a terminal does
    run.send_signal(number)
    _, said = run.communicate(timeout=120)
    assert (run.returncode, said) == (130, "")
    assert (tmp_path / "asked").read_text() == "1"
    assert len(starts(tmp_path)) == 1


def test_a_stop_ends_a_pause(tmp_path: Path) -> None:
    run = keep(tmp_path, "sys.exit(1)", pause=60)
    assert run.stderr is not None
    assert run.stderr.readline().endswith("it is started again in 60 s\n")
    run.send_signal(signal.SIGTERM)
    assert run.wait(5) == 130


def test_a_run_whose_supervisor_is_killed_is_told_to_stop(tmp_path: Path) -> None:
    run = keep(tmp_path, WAITING)
    wait_for(run, "waiting\n")
    (child,) = psutil.Process(run.pid).children()
    os.kill(run.pid, signal.SIGKILL)
    run.wait(5)
    psutil.wait_procs([child], timeout=10)
    assert (tmp_path / "asked").read_text() == "1"


def test_without_a_parent_that_passes_it_on_every_signal_counts() -> None:
    code = (
        "import signal\n"
        "from opd_ray.signals import on_stop\n"
        "asked = []\n"
        "with on_stop(lambda: asked.append(1)):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "print(len(asked))\n"
    )
    for parent, count in ((str(os.getpid()), "1\n"), ("1", "2\n")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OPD_RAY_SIGNALS_PASSED_ON_BY": parent},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == count, done.stderr
