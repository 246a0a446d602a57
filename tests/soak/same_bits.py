"""Every kind of run twice with ``run.deterministic``, one of the two with a death on its way.

    python tests/soak/same_bits.py --output /tmp/twice [--kinds overlap,lag]

Each pair must have the same weights and the same figures, bit by bit; what the clock decides aside.
The table goes to ``OUTPUT/same_bits.md``; the exit code is 1 if any pair differs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compared import differences, figures, steps
from kinds import KINDS, Kind
from marked_processes import MARK, kill_all, of_role

STEPS = 6
_SETTINGS = (f"run.steps={STEPS}", "run.checkpoint_every=2", "eval.every=3")
# Who dies after the third step, past its checkpoint, in the kinds in their order.
_VICTIMS = ("trainer", "rollout", "teacher")
_LIMIT_SECONDS = 900.0
_ALL = ",".join(name for name, kind in KINDS.items() if not kind.evaluates)


@dataclass(frozen=True)
class Pair:
    """What came of two runs of a kind."""

    kind: str
    killed: str  # the role, in the second
    seconds: tuple[float, float]
    rows: int  # of figures that were compared
    faults: list[str]


def run(kind: Kind, output: Path, victim: str | None) -> tuple[float, int | None]:
    """One run; its seconds, and its exit code, None where it had to be ended."""
    mark = f"{os.getpid()}-{output.parent.name}-{output.name}"
    program = (sys.executable, "-m", "opd_ray", "train", "--config")
    environment = {**os.environ, MARK: mark, "RAY_ADDRESS": ""}
    with output.with_suffix(".log").open("w") as log:
        begun = time.monotonic()
        started = subprocess.Popen(
            kind.command(program, output, _SETTINGS),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        while started.poll() is None and time.monotonic() - begun < _LIMIT_SECONDS:
            if victim and (output / "metrics.jsonl").exists() and len(steps(output)) >= 3:
                os.kill(of_role(mark, victim)[-1].pid, signal.SIGKILL)
                victim = None
            time.sleep(0.1)
        seconds = time.monotonic() - begun
    code = started.poll()
    kill_all(mark)
    started.wait()
    return seconds, code


def pair(name: str, folder: Path, victim: str) -> Pair:
    """A kind twice, the second time with a death."""
    folder.mkdir(parents=True)
    outputs = folder / "whole", folder / "broken"
    ended = [run(KINDS[name], outputs[0], None), run(KINDS[name], outputs[1], victim)]
    faults = [
        f"{output.name}: {'no end' if code is None else f'exit code {code}'}"
        for output, (_, code) in zip(outputs, ended, strict=True)
        if code != 0
    ]
    rows = 0
    if not faults:
        faults = differences(*outputs)
        rows = len(figures(outputs[0]))
        if steps(outputs[1]) != list(range(1, STEPS + 1)):
            faults.append(f"steps of the second: {steps(outputs[1])}")
        said = outputs[1].with_suffix(".log").read_text()
        if "again" not in said:
            faults.append("nobody was started again")
    return Pair(name, victim, (ended[0][0], ended[1][0]), rows, faults)


def table(pairs: Sequence[Pair]) -> str:
    """The result, as Markdown."""
    lines = ["| kind | killed | seconds | rows compared | weights and figures |"]
    lines += ["|---|---|---|---|---|"]
    for one in pairs:
        seconds = f"{one.seconds[0]:.0f}, {one.seconds[1]:.0f}"
        came_out = "; ".join(one.faults) or "the same"
        lines.append(f"| {one.kind} | {one.killed} | {seconds} | {one.rows} | {came_out} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default=_ALL, help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True)
    pairs: list[Pair] = []
    for name in options.kinds.split(","):
        victim = _VICTIMS[list(KINDS).index(name) % len(_VICTIMS)]
        pairs.append(pair(name, options.output / name, victim))
        (options.output / "same_bits.md").write_text(table(pairs))
        print(table(pairs[-1:]).splitlines()[-1], flush=True)
    return int(any(one.faults for one in pairs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
