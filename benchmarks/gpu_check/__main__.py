"""The check as a command; ``launch/gpu_check.sh`` calls it."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_check.part import MACHINE, PARTS, Part, missing
from gpu_check.report import today, write_report
from gpu_check.runner import FAILED, HUNG, PASSED, SKIPPED, STOPPED, Outcome, run_part
from opd_ray.signals import stop_as_interrupt

BAD_INPUT, INTERRUPTED = 2, 130


def main(
    arguments: Sequence[str] | None = None,
    parts: Sequence[Part] = PARTS,
    machine: Part = MACHINE,
) -> int:
    """Run the parts, report; 1 where one failed, 2 where none could be asked for, 130 on Ctrl-C."""
    asked = _arguments(arguments, parts)
    if asked.list:
        print("\n".join(f"{part.name:18}{_described(part)}" for part in parts))
        return 0
    folder: Path = asked.out.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    except OSError as error:
        print(f"gpu_check: cannot write: {error}; give --out FOLDER, or TMPDIR", file=sys.stderr)
        return BAD_INPUT
    try:
        with stop_as_interrupt():
            return _check(asked, machine, parts, folder, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check(
    asked: argparse.Namespace, machine: Part, parts: Sequence[Part], folder: Path, scratch: Path
) -> int:
    deadline = time.monotonic() + 60 * asked.minutes
    about = {"date": today(), "asked for": f"--device {asked.device} --minutes {asked.minutes:g}"}
    outcomes: list[Outcome] = []
    chosen = [part for part in parts if not asked.parts or part.name in asked.parts]
    stopped = False
    try:
        outcomes.append(_tell(_run(machine, asked.device, folder, scratch, machine.seconds)))
        figures = _figures(outcomes[0])
        if outcomes[0].state != PASSED:
            write_report(folder, outcomes, about)
            remedy = "activate an environment with PyTorch, or set PYTHON to its interpreter"
            print(f"gpu_check: {outcomes[0].reason}; {remedy}", file=sys.stderr)
            return 1
        gpus = int(figures["GPUs"])
        if asked.device == "cuda" and not gpus:
            why = figures["why there is no GPU"]
            print(f"gpu_check: {why}. --device cpu runs the same code on the CPU.", file=sys.stderr)
            return BAD_INPUT
        for part in chosen:
            seconds = min(part.seconds * asked.patience, deadline - time.monotonic())
            reason = _hindrance(part, asked.device, gpus)
            if not reason and seconds < 5:
                reason = f"the {asked.minutes:g} minutes are over: --minutes gives more"
            if reason:
                outcomes.append(_tell(Outcome(part.name, part.says, SKIPPED, reason=reason)))
            else:
                print(f"{part.name:18}{part.says} ...", flush=True)
                outcomes.append(_tell(_run(part, asked.device, folder, scratch, seconds)))
            write_report(folder, outcomes, about)
    except KeyboardInterrupt:
        stopped = True
        begun = {outcome.part for outcome in outcomes}
        left = [part for part in (machine, *chosen) if part.name not in begun]
        outcomes += [Outcome(part.name, part.says, STOPPED, reason="Ctrl-C") for part in left]
    report = write_report(folder, outcomes, about)
    states = [outcome.state for outcome in outcomes]
    counted = {state: states.count(state) for state in dict.fromkeys(states)}
    print(", ".join(f"{number} {state}" for state, number in counted.items()))
    print(f"The report: {report}")
    if stopped:
        return INTERRUPTED
    return int(any(state in (FAILED, HUNG) for state in states))


def _run(part: Part, device: str, folder: Path, scratch: Path, seconds: float) -> Outcome:
    if lacking := missing(part):
        return Outcome(part.name, part.says, FAILED, reason=f"needs {', '.join(lacking)}")
    return run_part(part, device, folder, scratch, seconds)


def _hindrance(part: Part, device: str, gpus: int) -> str:
    """Why a part cannot run here."""
    if device == "cpu" and part.not_on_cpus:
        return f"needs a GPU: {part.not_on_cpus}"
    if lacking := missing(part):
        return f"needs {', '.join(lacking)}"
    if device == "cpu" and part.gpus > 1:
        return f"needs {part.gpus} GPUs; there would be nothing new to it on a CPU"
    if device == "cuda" and gpus < part.gpus:
        return f"needs {part.gpus} GPUs, {gpus} found"
    return ""


def _described(part: Part) -> str:
    """What it shows, and what it needs beside one GPU and PyTorch."""
    needs = [*part.needs, *part.programs, *([f"{part.gpus} GPUs"] if part.gpus > 1 else [])]
    return f"{part.says} ({', '.join(needs)})"


def _figures(outcome: Outcome) -> Mapping[str, Any]:
    return {figure["what"]: figure["value"] for figure in outcome.findings.get("figures", [])}


def _tell(outcome: Outcome) -> Outcome:
    seconds = f" in {outcome.seconds:.0f} s" if outcome.seconds else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    print(f"{outcome.part:18}{outcome.state}{seconds}{reason}", flush=True)
    return outcome


def _arguments(arguments: Sequence[str] | None, parts: Sequence[Part]) -> argparse.Namespace:
    names = [part.name for part in parts]
    parser = argparse.ArgumentParser(
        prog="launch/gpu_check.sh",
        description="What of opd-ray works on this machine's GPU, in a report to be sent in.",
    )
    parser.add_argument(
        *("--parts", "--only"),
        nargs="+",
        default=[],
        choices=names,
        metavar="NAME",
        help=", ".join(names),
    )
    parser.add_argument("--list", action="store_true", help="say what the parts show and need")
    parser.add_argument(
        "--device",
        default="cuda",
        choices=("cuda", "cpu"),
        help="cpu: the same code without a GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        help="for all parts together; those that do not come to it are not run (default: "
        "%(default)g)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        help="times the seconds that a part may take, for a slow machine (default: %(default)g)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("gpu_check_report"),
        help="folder for report and logs (default: %(default)s, here)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
