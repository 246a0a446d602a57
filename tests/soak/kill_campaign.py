"""Kills random processes of real runs at random moments, and checks that nothing shows afterwards.

    python tests/soak/kill_campaign.py --kills 100 --output /tmp/campaign

One undisturbed run of the demo (2 rollout actors, 2 teacher replicas, 2 trainer ranks,
``run.deterministic``) gives the weights. In every further run a few processes are killed, one or
two at once; it must end by itself with the same weights bit by bit, every step once in its metrics,
and no process left. The table goes to ``OUTPUT/kill_campaign.md``; the exit code is 1 if any run
fell short.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from marked_processes import MARK, ROLES, kill_all, of_role, processes

ROOT = Path(__file__).resolve().parents[2]
STEPS = 16
SETTINGS = (
    "run.deterministic=true",
    "run.resume=auto",
    f"run.steps={STEPS}",
    "run.checkpoint_every=2",
    "rollout.actors=2",
    "rollout.prompts_per_step=32",
    "rollout.max_num_seqs=16",
    "teacher.replicas=2",
    "trainer.ranks=2",
    "rollout.max_restarts=10",
    "teacher.max_restarts=10",
    "trainer.max_restarts=10",
    "eval.every=8",
    "eval.kl_prompts=16",
    "eval.teacher_accuracy=false",
    "cluster.num_cpus=2",
)
# A run may take so many times as long as the undisturbed one, and so many seconds a kill beyond.
_PATIENCE, _PATIENCE_A_KILL = 3.0, 180.0
# How long after a run's end its processes may still be going.
_ORPHAN_SECONDS = 15.0


@dataclass(frozen=True)
class Kill:
    """One moment: who dies, and when."""

    seconds: float  # after the run's start
    roles: tuple[str, ...]  # one, or two at once


@dataclass
class Outcome:
    """What came of one run."""

    number: int
    seconds: float
    killed: list[str] = field(default_factory=list)  # roles, in their order
    faults: list[str] = field(default_factory=list)


def plan(rng: random.Random, duration_s: float, kills: int) -> list[Kill]:
    """``kills`` deaths at random moments of a run of that many seconds, soonest first."""
    moments: list[Kill] = []
    while kills:
        count = min(kills, 2 if rng.random() < 0.25 else 1)
        roles = tuple(rng.choice(ROLES) for _ in range(count))
        moments.append(Kill(rng.uniform(0.1, 1.0) * duration_s, roles))
        kills -= count
    return sorted(moments, key=lambda moment: moment.seconds)


def run(folder: Path, moments: Sequence[Kill], rng: random.Random, limit_s: float) -> Outcome:
    """One run with these deaths, from its start to its end or its limit."""
    folder.mkdir(parents=True)
    mark = f"{os.getpid()}-{folder.name}"
    command = ["bash", str(ROOT / "launch" / "single_node.sh"), "--retries", "20", "demo"]
    environment = {**os.environ, MARK: mark, "RAY_ADDRESS": "", "RAY_TMPDIR": "/tmp"}
    with (folder / "log.txt").open("w") as log:
        begun = time.monotonic()
        started = subprocess.Popen(
            [*command, f"run.output_dir={folder / 'run'}", *SETTINGS],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        outcome = Outcome(int(folder.name), 0.0)
        waiting = list(moments)
        while started.poll() is None and time.monotonic() - begun < limit_s:
            now = time.monotonic() - begun
            if waiting and now >= waiting[0].seconds and _kill_now(mark, waiting[0], rng, outcome):
                waiting.pop(0)
            time.sleep(0.2)
        outcome.seconds = time.monotonic() - begun
    if started.poll() is None:
        outcome.faults.append(f"hangs: no end within {limit_s:.0f} s")
    elif started.returncode:
        outcome.faults.append(f"ended with exit code {started.returncode}")
    outcome.faults += _left(mark)
    kill_all(mark)
    started.wait()
    return outcome


def _kill_now(mark: str, moment: Kill, rng: random.Random, outcome: Outcome) -> bool:
    """Kill one process of each role, once all are up; False before that."""
    found = [of_role(mark, role) for role in moment.roles]
    if not all(found):
        return False
    victims = {rng.choice(up).pid: role for up, role in zip(found, moment.roles, strict=True)}
    for pid, role in victims.items():
        with suppress(ProcessLookupError):  # the death of the other has ended it already
            os.kill(pid, signal.SIGKILL)
            outcome.killed.append(role)
    return True


def _left(mark: str) -> list[str]:
    """Processes of an ended run that go on after all."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while (left := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"orphan: {' '.join(process.cmdline())[:120]}" for process in left]


def weights(folder: Path) -> str:
    """A fingerprint of the student that a run exported."""
    exported = folder / "run" / "export" / "model.safetensors"
    return hashlib.sha256(exported.read_bytes()).hexdigest()


def steps(folder: Path) -> list[int]:
    """The steps in the metrics, as they stand there."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if "train/loss" in row]


def compare(folder: Path, wanted: str, outcome: Outcome) -> None:
    """Add to the faults what a run that ended left behind other than the undisturbed one."""
    if outcome.faults:
        return
    if steps(folder) != list(range(1, STEPS + 1)):
        outcome.faults.append(f"steps in the metrics: {steps(folder)}")
    if weights(folder) != wanted:
        outcome.faults.append("other weights than the undisturbed run's")


def costs(outcomes: Sequence[Outcome], undisturbed_s: float) -> dict[str, float]:
    """Seconds that a death of each role costs: least squares over all runs."""
    counts = np.array([[o.killed.count(role) for role in ROLES] for o in outcomes])
    extra = np.array([o.seconds - undisturbed_s for o in outcomes])
    found, *_ = np.linalg.lstsq(counts, extra, rcond=None)
    return {role: float(seconds) for role, seconds in zip(ROLES, found, strict=True)}


def table(outcomes: Sequence[Outcome], undisturbed_s: float) -> str:
    """The result, as Markdown."""
    killed = Counter(role for outcome in outcomes for role in outcome.killed)
    seconds = costs(outcomes, undisturbed_s) if outcomes else {}
    whole = sum(not outcome.faults for outcome in outcomes)
    lines = [
        f"{sum(killed.values())} kills in {len(outcomes)} runs of {STEPS} steps, "
        f"{undisturbed_s:.0f} s undisturbed. {whole} runs ended by themselves with every step once "
        "in the metrics, no process left, and the undisturbed run's weights bit by bit.",
        "",
        "| killed | times | seconds each cost |",
        "|---|---|---|",
        *(f"| {role} | {killed[role]} | {seconds.get(role, 0.0):.0f} |" for role in ROLES),
    ]
    faulty = [outcome for outcome in outcomes if outcome.faults]
    if faulty:
        lines += ["", "| run | killed | what fell short |", "|---|---|---|"]
        lines += [f"| {o.number} | {', '.join(o.killed)} | {'; '.join(o.faults)} |" for o in faulty]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--kills", type=int, default=100, help="deaths in all")
    parser.add_argument("--kills-a-run", type=int, default=4, help="deaths in one run")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True)
    rng = random.Random(options.seed)
    base = options.output / "0"
    first = run(base, [], rng, limit_s=1800.0)
    compare(base, weights(base) if not first.faults else "", first)
    if first.faults:
        print(f"the undisturbed run fell short: {first.faults}; see {base / 'log.txt'}")
        return 1
    wanted, outcomes, left = weights(base), [], options.kills
    while left > 0:
        folder = options.output / str(len(outcomes) + 1)
        moments = plan(rng, first.seconds, min(left, options.kills_a_run))
        limit_s = _PATIENCE * first.seconds + _PATIENCE_A_KILL * options.kills_a_run
        outcome = run(folder, moments, rng, limit_s)
        compare(folder, wanted, outcome)
        outcomes.append(outcome)
        left -= max(1, len(outcome.killed))
        print(json.dumps(asdict(outcome)), flush=True)
        (options.output / "kill_campaign.md").write_text(table(outcomes, first.seconds))
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
