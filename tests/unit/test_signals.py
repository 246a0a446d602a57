"""A program that is told to stop: by its terminal that closes, and by whoever ignores that."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from opd_ray.signals import on_stop, stop_as_interrupt, unheard_below

# Prints for ever to its terminal; told to stop, it prints once more and leaves a file.
PRINTING = """
import sys, time
from pathlib import Path
from opd_ray.signals import on_stop
asked = []
with on_stop(lambda: asked.append(1)):
    print("begun", flush=True)
    while not asked:
        time.sleep(0.01)
    print("saving", flush=True)
    print("saving", file=sys.stderr, flush=True)
Path(sys.argv[1]).write_text("saved")
"""


def test_a_program_whose_terminal_closes_ends_in_order(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", PRINTING, str(saved)])
    assert os.read(terminal, 5) == b"begun"
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert saved.read_text() == "saved"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "from opd_ray.signals import stop_as_interrupt\n"
        "with stop_as_interrupt():\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "    print('went on')\n"
    )
    for prefix, printed in (("trap '' HUP; ", "went on\n"), ("", "")):
        command = ["bash", "-c", f'{prefix}exec {sys.executable} -c "$0"', code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stdout, "KeyboardInterrupt" in done.stderr) == (printed, not printed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_of_them_interrupts_and_the_handlers_before_are_back(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_as_interrupt():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_processes_started_unheard_do_not_hear_it_and_this_one_does_afterwards() -> None:
    asked: list[str] = []
    with on_stop(lambda: asked.append("stop")):
        with unheard_below():
            child = subprocess.Popen(["sleep", "60"])
            signal.raise_signal(signal.SIGHUP)
            assert asked == []
        assert asked == ["stop"]
        child.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        child.terminate()
        assert child.wait(10) == -signal.SIGTERM
