"""Kills random processes of real runs at random moments, and checks that nothing shows afterwards.

    python tests/soak/kill_campaign.py --kills 100 --output /tmp/campaign
    python tests/soak/kill_campaign.py --kinds lag,overlap,tools,eval --kills 40 --output /tmp/kinds
    python tests/soak/kill_campaign.py --kills 15 --kills-a-run 1 --output /tmp/costs

One undisturbed run of every kind (the demo with 2 rollout actors, 2 teacher replicas, 2 trainer
ranks, ``run.deterministic``) gives weights and figures. In every further run a few processes are
killed, one or two at once; it must end by itself with the same weights and figures bit by bit,
every step once in its metrics, and no process left. An evaluation whose own process or Ray dies is
given the same command again; it must answer every problem once, and all but a few as before: which
problems are left decides how products round.

The table goes to ``OUTPUT/kill_campaign.md``, with the seconds that a role's death costs where it
was the only one in a run. The exit code is 1 if any run fell short.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import TextIO

from compared import differences, steps
from kinds import KINDS, ROOT
from marked_processes import MARK, kill_all, of_role, processes

STEPS = 16
SETTINGS = (f"run.steps={STEPS}", "run.checkpoint_every=2", "eval.every=8")
_PROGRAM = ("bash", str(ROOT / "launch" / "single_node.sh"), "--retries", "20")
# Of an evaluation's responses, so many are the same.
_SAME_RESPONSES = 0.98
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
    kind: str
    seconds: float
    killed: list[str] = field(default_factory=list)  # roles, in their order
    faults: list[str] = field(default_factory=list)
    started_again: int = 0  # by hand, an evaluation


def plan(rng: random.Random, duration_s: float, kills: int, roles: Sequence[str]) -> list[Kill]:
    """``kills`` deaths at random moments of a run of that many seconds, soonest first."""
    moments: list[Kill] = []
    while kills:
        count = min(kills, 2 if rng.random() < 0.25 else 1)
        chosen = tuple(rng.choice(roles) for _ in range(count))
        moments.append(Kill(rng.uniform(0.1, 1.0) * duration_s, chosen))
        kills -= count
    return sorted(moments, key=lambda moment: moment.seconds)


def run(
    kind: str, folder: Path, moments: Sequence[Kill], rng: random.Random, limit_s: float
) -> Outcome:
    """One run with these deaths, from its start to its end or its limit."""
    folder.mkdir(parents=True)
    mark = f"{os.getpid()}-{folder.name}"
    command = KINDS[kind].command(_PROGRAM, folder / "run", SETTINGS)
    environment = {**os.environ, MARK: mark, "RAY_ADDRESS": ""}
    outcome = Outcome(int(folder.name), kind, 0.0)
    waiting = list(moments)
    with (folder / "log.txt").open("w") as log:
        begun = time.monotonic()
        started = _start(command, log, environment)
        while time.monotonic() - begun < limit_s:
            code = started.poll()
            if code is not None and not (code and _is_given_again(kind, outcome)):
                break
            if code is not None:
                started = _start(command, log, environment)
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


def _start(command: Sequence[str], log: TextIO, environment: dict[str, str]) -> Popen[bytes]:
    return Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def _is_given_again(kind: str, outcome: Outcome) -> bool:
    """Whether somebody starts an evaluation again: its own process, or Ray, was killed."""
    whole = outcome.killed.count("evaluation") + outcome.killed.count("raylet")
    outcome.started_again += 1
    return KINDS[kind].evaluates and outcome.started_again <= whole


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


def compare(base: Path, folder: Path, outcome: Outcome) -> None:
    """Add to the faults what a run that ended left behind other than the undisturbed one."""
    if outcome.faults:
        return
    if KINDS[outcome.kind].evaluates:
        outcome.faults += _other_responses(base / "run", folder / "run")
        return
    if steps(folder / "run") != list(range(1, STEPS + 1)):
        outcome.faults.append(f"steps in the metrics: {steps(folder / 'run')}")
    outcome.faults += differences(base / "run", folder / "run")


def _other_responses(one: Path, other: Path) -> list[str]:
    first, second = (
        [json.loads(line) for path in sorted(out.glob("*/*.jsonl")) for line in path.open()]
        for out in (one, other)
    )
    if sorted(row["id"] for row in first) != sorted(row["id"] for row in second):
        return ["other problems are answered"]
    responses = {row["id"]: row["responses"] for row in second}
    pairs = [
        pair for row in first for pair in zip(row["responses"], responses[row["id"]], strict=True)
    ]
    same = sum(text == again for text, again in pairs) / len(pairs)
    return [] if same >= _SAME_RESPONSES else [f"only {same:.1%} of the responses are the same"]


def costs(
    outcomes: Sequence[Outcome], undisturbed_s: Mapping[str, float]
) -> dict[str, list[float]]:
    """By role, seconds that its death cost in every whole run in which nothing else died."""
    found: dict[str, list[float]] = {}
    for one in outcomes:
        if len(one.killed) == 1 and not one.faults:
            found.setdefault(one.killed[0], []).append(one.seconds - undisturbed_s[one.kind])
    return found


def table(outcomes: Sequence[Outcome], undisturbed_s: Mapping[str, float]) -> str:
    """The result, as Markdown."""
    killed = Counter(role for outcome in outcomes for role in outcome.killed)
    seconds = costs(outcomes, undisturbed_s)
    whole = sum(not outcome.faults for outcome in outcomes)
    base = ", ".join(f"{kind} {taken:.0f} s" for kind, taken in undisturbed_s.items())
    lines = [
        f"{sum(killed.values())} kills in {len(outcomes)} runs; undisturbed: {base}. {whole} runs "
        "ended by themselves as the undisturbed ones, with no process left.",
        "",
        "| kind | runs | kills | whole |",
        "|---|---|---|---|",
    ]
    for kind in undisturbed_s:
        own = [one for one in outcomes if one.kind == kind]
        count = sum(len(one.killed) for one in own)
        lines.append(f"| {kind} | {len(own)} | {count} | {sum(not one.faults for one in own)} |")
    lines += ["", "| killed | times | seconds, where alone in a run |", "|---|---|---|"]
    for role, times in sorted(killed.items()):
        each = ", ".join(f"{one:.0f}" for one in sorted(seconds.get(role, [])))
        lines.append(f"| {role} | {times} | {each} |")
    faulty = [outcome for outcome in outcomes if outcome.faults]
    if faulty:
        lines += ["", "| run | kind | killed | what fell short |", "|---|---|---|---|"]
        lines += [
            f"| {o.number} | {o.kind} | {', '.join(o.killed)} | {'; '.join(o.faults)} |"
            for o in faulty
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--kinds", default="plain", help=f"of {', '.join(KINDS)}, in turn")
    parser.add_argument("--kills", type=int, default=100, help="deaths in all")
    parser.add_argument("--kills-a-run", type=int, default=4, help="deaths in one run")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True)
    # Of its own, so that no run joins another Ray of this machine; short, as paths of sockets are.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="opd", dir="/tmp")
    rng = random.Random(options.seed)
    kinds = options.kinds.split(",")
    bases = {kind: options.output / str(number) for number, kind in enumerate(kinds)}
    undisturbed_s: dict[str, float] = {}
    for kind, base in bases.items():
        first = run(kind, base, [], rng, limit_s=1800.0)
        compare(base, base, first)
        if first.faults:
            print(f"the undisturbed run fell short: {first.faults}; see {base / 'log.txt'}")
            return 1
        undisturbed_s[kind] = first.seconds
    outcomes: list[Outcome] = []
    left = options.kills
    while left > 0:
        kind = kinds[len(outcomes) % len(kinds)]
        folder = options.output / str(len(kinds) + len(outcomes))
        count = min(left, options.kills_a_run)
        if options.kills_a_run == 1:  # the roles in turn
            role = KINDS[kind].roles[len(outcomes) // len(kinds) % len(KINDS[kind].roles)]
            moments = [Kill(rng.uniform(0.4, 0.8) * undisturbed_s[kind], (role,))]
        else:
            moments = plan(rng, undisturbed_s[kind], count, KINDS[kind].roles)
        limit_s = _PATIENCE * undisturbed_s[kind] + _PATIENCE_A_KILL * options.kills_a_run
        outcome = run(kind, folder, moments, rng, limit_s)
        compare(bases[kind], folder, outcome)
        outcomes.append(outcome)
        left -= max(1, len(outcome.killed))
        print(json.dumps(asdict(outcome)), flush=True)
        (options.output / "kill_campaign.md").write_text(table(outcomes, undisturbed_s))
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
