"""Runs of the demo in bad surroundings: each must end by itself as an undisturbed one does.

    PYTHONPATH=. python tests/soak/bad_weather.py --output /tmp/weather [--weathers clock,small_shm]

- ``slow_disk``: every fsync and rename takes a second longer, in all processes.
- ``clock``: Python's wall clock jumps every few seconds, an hour ahead or a day back.
- ``small_shm``: /dev/shm has 64 MB (a mount of its own: wants root).
- ``full_store``: Ray's object store is as small as Ray allows, and a step's signals are larger.

The table goes to ``OUTPUT/bad_weather.md``; the exit code is 1 if any run fell short.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from compared import differences, steps
from kinds import KINDS
from marked_processes import MARK, kill_all, processes

STEPS = 6
_SETTINGS = (f"run.steps={STEPS}", "run.checkpoint_every=2", "eval.every=3")
_LIMIT_SECONDS = 1200.0
# 70 MB of what the teacher knows of the rows that are kept, beside weights and top-Ks.
_LARGE = (
    "run.steps=2",
    "rollout.prompts_per_step=6144",
    "rollout.max_num_seqs=128",
    "tip.rho=1.0",
    "eval.every=0",
    "eval.tasks=[]",
    "eval.kl_prompts=0",
)


@dataclass(frozen=True)
class Weather:
    """What surrounds a run."""

    settings: tuple[str, ...] = _SETTINGS
    own: tuple[str, ...] = ()  # settings that an undisturbed run does not have
    variables: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()  # the command


def _disturbed(**variables: str) -> Weather:
    """With tests/soak/disturbed in all processes."""
    paths = [str(Path(__file__).parent / "disturbed"), os.environ.get("PYTHONPATH", "")]
    return Weather(variables={"PYTHONPATH": ":".join(filter(None, paths)), **variables})


_MOUNT = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
WEATHERS = {
    "slow_disk": _disturbed(OPD_RAY_SLOW_SECONDS="1.0"),
    "clock": _disturbed(OPD_RAY_JUMPING_CLOCK="1"),
    "small_shm": Weather(before=("unshare", "-m", "sh", "-c", _MOUNT, "sh")),
    "full_store": Weather(settings=_LARGE, own=(f"cluster.object_store_bytes={75 << 20}",)),
}


def run(weather: Weather, output: Path) -> tuple[float, list[str]]:
    """One run; its seconds, and in what it fell short."""
    mark = f"{os.getpid()}-{output.parent.name}-{output.name}"
    program = (sys.executable, "-m", "opd_ray", "train", "--config")
    command = KINDS["plain"].command(program, output, (*weather.settings, *weather.own))
    with output.with_suffix(".log").open("w") as log:
        begun = time.monotonic()
        started = subprocess.Popen(
            [*weather.before, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, MARK: mark, "RAY_ADDRESS": "", **weather.variables},
            start_new_session=True,
        )
        while started.poll() is None and time.monotonic() - begun < _LIMIT_SECONDS:
            time.sleep(0.1)
        seconds = time.monotonic() - begun
    faults = []
    if started.poll() is None:
        faults.append(f"no end within {_LIMIT_SECONDS:.0f} s")
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    elif started.returncode:
        faults.append(f"exit code {started.returncode}")
    time.sleep(5.0)
    faults += [f"orphan: {' '.join(one.cmdline())[:80]}" for one in processes(mark)]
    kill_all(mark)
    started.wait()
    if "Traceback" in output.with_suffix(".log").read_text():
        faults.append("a traceback")
    return seconds, faults


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weathers", default=",".join(WEATHERS), help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True)
    lines = ["| weather | seconds, undisturbed | seconds | came out |", "|---|---|---|---|"]
    undisturbed: dict[tuple[str, ...], tuple[Path, float]] = {}  # by settings
    short = False
    for name in options.weathers.split(","):
        weather = WEATHERS[name]
        if weather.settings not in undisturbed:
            base = options.output / f"undisturbed_{len(undisturbed)}"
            seconds, faults = run(Weather(weather.settings), base)
            if faults:
                print(f"the undisturbed run fell short: {faults}")
                return 1
            undisturbed[weather.settings] = base, seconds
        base, base_seconds = undisturbed[weather.settings]
        output = options.output / name
        seconds, faults = run(weather, output)
        if not faults:
            faults = differences(base, output)
            if steps(output) != steps(base):
                faults.append(f"steps: {steps(output)}")
        short |= bool(faults)
        came_out = "; ".join(faults) or "the same"
        lines.append(f"| {name} | {base_seconds:.0f} | {seconds:.0f} | {came_out} |")
        print(lines[-1], flush=True)
        (options.output / "bad_weather.md").write_text("\n".join(lines) + "\n")
    return int(short)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
