"""launch/cluster/slurm.sh: what it asks Slurm and Ray for, in stand-ins of both."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "cluster" / "slurm.sh"
# Notes what it is asked for.
NOTE = '#!/usr/bin/env bash\necho "${0##*/} $*" >> "$CALLS"\n'
COMMANDS = {
    # Its own options up to the command.
    "srun": NOTE + 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"\n',
    # Runs what stands after "--", as the head node's does.
    "ray": NOTE + '[[ "$1" == symmetric-run ]] || exit 0\n'
    'while [[ "$1" != -- ]]; do shift; done\nshift\n"$@"\n',
    "scontrol": NOTE + '[[ "$1" == show ]] && printf "node7\\nnode8\\n"\nexit 0\n',
    # The run: ends with CODE, or, where that is empty, with 130 when it is told to stop.
    "opd-ray": NOTE + '[[ -n "$CODE" ]] && exit "$CODE"\n'
    "trap 'echo stopped >> \"$CALLS\"; exit 130' TERM\n"
    'echo "at work" >> "$CALLS"\nfor _ in {1..200}; do sleep 0.1; done\n',
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Variables of a job on two nodes, whose commands are stand-ins."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in COMMANDS.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    return {
        **kept,
        "PATH": f"{binaries}:{kept['PATH']}",
        "TMPDIR": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "CODE": "0",
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "16",
    }


def start(job: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", SCRIPT, *arguments],
        env=job,
        cwd=job["TMPDIR"],
        stderr=subprocess.PIPE,
        text=True,
    )


def run(job: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code, and what it said."""
    script = start(job, *arguments)
    _, said = script.communicate(timeout=120)
    return script.returncode, said


def calls(job: dict[str, str]) -> list[str]:
    path = Path(job["CALLS"])
    return path.read_text().splitlines() if path.exists() else []


def test_every_node_starts_ray_and_the_first_the_run(job: dict[str, str]) -> None:
    code, said = run(job, "mine.yaml", "run.output_dir=/shared/a b")
    assert (code, said) == (0, "")
    scontrol, token, srun, ray, train = calls(job)
    assert scontrol == "scontrol show hostnames node[7-8]"
    assert token == "ray get-auth-token --generate"
    assert srun.startswith(
        "srun --nodes=2 --ntasks-per-node=1 --cpus-per-task=16 ray symmetric-run --address "
        "node7:6379 --min-nodes 2 -- bash -c "
    )
    assert ray == srun.split("--cpus-per-task=16 ")[1]
    assert train == (
        "opd-ray train --retries 3 --config mine.yaml run.output_dir=/shared/a b "
        "cluster.address=auto"
    )


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR1, ["scontrol requeue 42"]), (signal.SIGTERM, [])]
)
def test_a_signal_stops_the_run_and_the_time_limit_queues_it_again(
    job: dict[str, str], number: signal.Signals, requeued: list[str]
) -> None:
    script = start({**job, "CODE": ""}, "demo")
    deadline = time.monotonic() + 120
    while "at work" not in calls(job) and time.monotonic() < deadline:
        time.sleep(0.02)
    script.send_signal(number)
    assert script.wait(120) == 130
    assert calls(job)[-1 - len(requeued) :] == ["stopped", *requeued]


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (2, False), (130, False), (1, True), (137, True)]
)
def test_failures_are_queued_again_and_bad_input_is_not(
    job: dict[str, str], code: int, requeued: bool
) -> None:
    assert run({**job, "CODE": str(code)}, "demo")[0] == code
    assert (calls(job)[-1] == "scontrol requeue 42") == requeued


def test_failures_in_a_row_come_to_an_end(job: dict[str, str]) -> None:
    for code in (1, 1, 1, 0, 1):  # the third in a row is given up; a success begins anew
        run({**job, "CODE": str(code)}, "--retries", "2", "demo")
    trains = [line for line in calls(job) if line.startswith(("opd-ray", "scontrol requeue"))]
    again = "scontrol requeue 42"
    train = "opd-ray train --retries 2 --config demo cluster.address=auto"
    assert trains == [train, again, train, again, train, train, train, again]


@pytest.mark.parametrize("arguments", [[], ["--retries"], ["--retries", "two", "demo"]])
def test_it_says_how_it_is_used(job: dict[str, str], arguments: list[str]) -> None:
    code, said = run(job, *arguments)
    assert (code, calls(job)) == (2, [])
    assert "sbatch --nodes=4" in said
    assert run({**job, "SLURM_JOB_ID": ""}, "demo")[0] == 2


def test_its_options_for_slurm_stand_before_its_first_command() -> None:
    lines = SCRIPT.read_text().splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert options
    assert max(options) < first  # Slurm reads no further
    assert "#SBATCH --signal=B:USR1@300" in lines
    assert "#SBATCH --requeue" in lines
