"""A run that is started again when it dies, until it is done or gets no further."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_ray.cluster.supervisor import Supervisor
from opd_ray.errors import BAD_INPUT, INTERRUPTED, READER_LEFT, RUN_FAILED
from opd_ray.output.checkpoint import MANIFEST, CheckpointStore

# Ended for good: done, stopped by the user, or nobody is there to read what it says.
_FOR_GOOD = (0, INTERRUPTED, READER_LEFT)
# Seconds before the next start: doubled with every one in a row that brought no checkpoint.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 300.0


@dataclass
class Retries:
    """Decides after every start of a run whether there is another, and how soon."""

    limit: int  # starts in a row that may leave no new checkpoint
    first_pause: float = FIRST_PAUSE  # seconds
    starts: int = 0  # that have ended
    in_vain: int = 0  # the last of them that left no new checkpoint

    def pause(self, code: int, got_further: bool) -> float | None:
        """Seconds until the next start; None: there is none.

        Bad input ends a run for good at its first start only. Later it has been accepted once, so
        it is the surroundings that have changed: a node is not back yet, a disk is full.

        Args:
            code: how the start has ended: an exit code, or minus the number of a signal.
            got_further: whether it has left a new checkpoint.
        """
        self.starts += 1
        self.in_vain = 0 if got_further else self.in_vain + 1
        if code in _FOR_GOOD or (code == BAD_INPUT and self.starts == 1):
            return None
        if self.in_vain > self.limit or not self.limit:
            return None
        return min(LONGEST_PAUSE, self.first_pause * 2 ** max(0, self.in_vain - 1))


def keep_running(
    command: Sequence[str], output_dir: str | Path, retries: Retries, supervisor: Supervisor
) -> int:
    """Run a training command, again and again if need be; returns its last exit code.

    Args:
        command: trains in ``output_dir``, and takes ``key=value`` at its end.
        output_dir: ``run.output_dir`` of the run.
        retries: says when to start again.
        supervisor: starts it; entered.
    """
    checkpoints = CheckpointStore(Path(output_dir, "checkpoints"), keep=1)
    at_first = newest = _newest(checkpoints)
    while True:
        # run.resume may say to begin anew or elsewhere: true until this run has a checkpoint.
        resume = ["run.resume=auto"] if newest not in (None, at_first) else []
        code, killed = supervisor.run([*command, *resume])
        if killed:
            _say(f"killed what the run had left behind: {', '.join(killed)}")
        if supervisor.asked_to_stop():
            return INTERRUPTED if code < 0 else code
        before, newest = newest, _newest(checkpoints)
        pause = retries.pause(code, got_further=newest not in (None, before))
        if pause is None:
            if code in _FOR_GOOD or retries.starts == 1:
                return _exit_code(code)
            _say(f"given up: the run {ending(code)}{_in_vain(retries)}")
            # What was accepted once is no bad input: whoever started this may try it later.
            return RUN_FAILED if code == BAD_INPUT else _exit_code(code)
        _say(f"the run {ending(code)}{_in_vain(retries)}; it is started again in {pause:g} s")
        supervisor.pause(pause)
        if supervisor.asked_to_stop():
            return INTERRUPTED


def start_count(text: str) -> int:
    """The N of ``--retries N``."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of starts, e.g. 3")
    return int(text)


def ending(code: int) -> str:
    """How a start has ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _exit_code(code: int) -> int:
    """As a shell gives it."""
    return code if code >= 0 else 128 - code


def _in_vain(retries: Retries) -> str:
    if not retries.in_vain:
        return ""
    return (
        f" without a new checkpoint (start {retries.in_vain} of {retries.limit + 1} in a row that "
        f"may: --retries {retries.limit})"
    )


def _newest(checkpoints: CheckpointStore) -> tuple[Path, int] | None:
    """The newest whole checkpoint and when it was written; None: there is none."""
    found = checkpoints.newest()
    return found and (found[0], (found[0] / MANIFEST).stat().st_mtime_ns)


def _say(text: str) -> None:
    print(f"opd-ray: {text}", file=sys.stderr, flush=True)
