"""What a step costs the process of the driver as actors and rollouts grow.

    python benchmarks/driver_scale.py [--actors 10 100 1000] [--rollouts 1000 10000 100000]

Whole steps of the real coordinator, with its pools, its filter (the defaults, and without overlaps
of other rules) and its plan of micro-batches. Rollouts have 1,000 tokens. Half of the actors write,
half are teachers; beside them are eight trainer ranks. All of them answer at once: first as plain
objects in the same process, whose own time and memory are left out, then as Ray actors in processes
of their own, as many as two cores bear. Of two steps the second is measured, each case in a process
of its own. Writes results/driver_scale.md.

The reach is 2 % of a step of 60 seconds and 4 GB, at 1,000 actors and 100,000 rollouts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from driver_actors import (
    Account,
    Engine,
    Loop,
    RayEngine,
    RayTeacher,
    RayTrainer,
    Teacher,
    Texts,
    Trainer,
)
from process_memory import process_memory, settle

from opd_ray.config.schema import Config, RolloutSettings, RunSettings, TrainerSettings
from opd_ray.coordinator import loop
from opd_ray.coordinator.loop import Coordinator
from opd_ray.data.prompts import Prompt
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import Metrics
from opd_ray.pools.members import RestartPolicy
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.scorer import BatchUnderWay, RolloutScorer
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.pools.turns import AllAtOnce
from opd_ray.pools.watch import ActorWatch
from opd_ray.tip import TipFilter, TipSettings

RESULTS = Path(__file__).parent / "results" / "driver_scale.md"
VOCAB, TOKENS, PROMPT, SAMPLES, TOPK = 151_936, 1000, 128, 10, 16
RANKS, MICRO_BATCH_TOKENS, BATCH_TOKENS, IN_FLIGHT = 8, 16_384, 8192, 64
# Parts of a step in the order of the table; what is not named there is "rest".
PARTS = {
    "requests": "requests and seeds",
    "events": "events: rollouts and scores come in",
    "join": "scores as the filter takes them",
    "filter": "filter",
    "items": "what is trained on",
    "plan": "micro-batches, signals, trainers' calls",
    "metrics": "figures of the step",
    "rest": "all else",
}


@dataclass
class Actors:
    """The watch and the actors of a step: (name, handle) pairs."""

    watch: Any
    engines: list[tuple[str, Any]]
    teachers: list[tuple[str, Any]]
    trainers: list[tuple[str, Any]]


def plain_objects(count: int, account: Account) -> Actors:
    """So many actors in this process."""
    texts, half = Texts(TOKENS, VOCAB), count // 2
    return Actors(
        Loop(account),
        [(f"rollout-{number}", Engine(texts)) for number in range(half)],
        [(f"teacher-{number}", Teacher(texts, account)) for number in range(half)],
        [(f"trainer-{number}", Trainer(account)) for number in range(RANKS)],
    )


def ray_actors(count: int, topk: int, stack: ExitStack) -> Actors:
    """So many actors of a Ray of our own, which ends with the stack."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    stack.callback(ray.shutdown)
    watch, half = ActorWatch(600.0, "a key"), count // 2
    stack.callback(watch.shutdown)
    made: dict[str, list[tuple[str, Any]]] = {}
    for role, size, make in (
        ("rollout", half, lambda: RayEngine.remote(TOKENS, VOCAB, topk)),
        ("teacher", half, lambda: RayTeacher.remote(TOKENS, VOCAB)),
        ("trainer", RANKS, RayTrainer.remote),
    ):
        made[role] = [(f"{role}-{number}", make()) for number in range(size)]
        for name, handle in made[role]:
            watch.add(name, handle)
        watch.get_all([(handle.ready.remote(), name) for name, handle in made[role]])
    return Actors(watch, made["rollout"], made["teacher"], made["trainer"])


def put_together(actors: Actors, rollouts: int, tip: TipSettings) -> Coordinator:
    """A coordinator of two steps, of these actors."""
    watch = actors.watch
    config = Config(
        run=RunSettings(steps=2),
        rollout=RolloutSettings(
            prompts_per_step=rollouts // SAMPLES,
            samples_per_prompt=SAMPLES,
            max_num_seqs=IN_FLIGHT,
            max_new_tokens=TOKENS,
        ),
        tip=tip,
        trainer=TrainerSettings(ranks=RANKS, micro_batch_tokens=MICRO_BATCH_TOKENS),
    )
    policy = RestartPolicy(
        what="actor",
        key="a section",
        start=lambda name: None,
        max_restarts=0,
        no_more="none may be started again",
        remedy="",
        start_timeout_s=600.0,
        answer_timeout_s=600.0,
    )
    pool = TeacherPool(actors.teachers, BATCH_TOKENS, watch, policy)
    engines = RolloutPool(watch, actors.engines, IN_FLIGHT, policy)
    teachers = TeacherRouter({"teacher": pool}, {})
    session: Any = SimpleNamespace(
        sync=SimpleNamespace(push=lambda *_, **__: None),
        order=AllAtOnce(watch),
        teachers=teachers,
        trainers=TrainerGroup(watch, actors.trainers, config.trainer),
        scorer=RolloutScorer(watch, engines, teachers, AllAtOnce(watch)),
        launcher=SimpleNamespace(peak_memory=dict),
        vocab_size=VOCAB,
    )
    ids = np.random.default_rng(1).integers(
        VOCAB, size=(rollouts // SAMPLES, PROMPT), dtype=np.int32
    )
    prompts = [Prompt(f"p{number}", row, row) for number, row in enumerate(ids)]
    feed: Any = SimpleNamespace(batch=lambda step, size: prompts)
    nobody: Any = SimpleNamespace()
    return Coordinator(
        config,
        session,
        feed,
        TipFilter(config.tip),
        nobody,
        nobody,
        Metrics([]),
        Progress(2, 0, io.StringIO(), every=10),
    )


def account_of(coordinator: Any, account: Account) -> None:
    """Have the parts of the coordinator's steps timed."""

    def timed(owner: Any, method: str, part: str) -> None:
        setattr(owner, method, account.timed(part, getattr(owner, method)))

    timed(coordinator.batches, "of", "requests")
    timed(BatchUnderWay, "result", "events")
    timed(coordinator, "_scores", "join")
    timed(coordinator, "_seeds", "requests")
    timed(coordinator, "_select", "filter")
    timed(coordinator, "_items", "items")
    timed(coordinator.session.trainers, "step", "plan")
    timed(loop, "step_metrics", "metrics")
    timed(coordinator, "_tail", "metrics")


def measure(actors: int, rollouts: int, overlap: bool, by_ray: bool, topk: int) -> dict[str, Any]:
    """CPU seconds by part and bytes of the second of two steps."""
    account = Account()
    with ExitStack() as stack:
        made = ray_actors(actors, topk, stack) if by_ray else plain_objects(actors, account)
        coordinator = put_together(made, rollouts, TipSettings(overlap=overlap))
        account_of(coordinator, account)
        before = settle()
        coordinator.step(0)
        settle()
        account.clear()
        coordinator.step(1)
        peak = process_memory("VmHWM")
        return {"seconds": account.clear(), "before": before, "peak": peak}


def in_own_process(
    actors: int, rollouts: int, *, overlap: bool = True, by_ray: bool = False, topk: int = TOPK
) -> dict[str, Any]:
    """:func:`measure` in a process that has done nothing else."""
    case = {
        "actors": actors,
        "rollouts": rollouts,
        "overlap": overlap,
        "by_ray": by_ray,
        "topk": topk,
    }
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1]) | case
    parts = found["seconds"]
    found["filter"] = parts["filter"]
    found["others"] = sum(parts.values()) - parts["filter"] - parts.get("stand-ins", 0.0)
    print(
        f"{actors:>6,} actors{' of Ray' if by_ray else '':8}{rollouts:>9,} rollouts "
        f"{found['filter']:8.2f} s filter {found['others']:8.2f} s all else "
        f"{found['peak'] / 1e9:6.2f} GB",
        flush=True,
    )
    return found


def growth(rows: Sequence[dict[str, Any]], axis: str, value: str) -> float:
    """The exponent of a power law through the rows, by least squares of the logarithms."""
    x, y = np.log([row[axis] for row in rows]), np.log([row[value] for row in rows])
    return float(np.polyfit(x, y, 1)[0])


def report(
    plain: Sequence[dict[str, Any]], bare: dict[str, Any], by_ray: Sequence[dict[str, Any]]
) -> str:
    """The tables.

    Args:
        plain: cases with plain objects, the largest last.
        bare: the largest without overlaps of other rules.
        by_ray: cases with Ray actors; the last one without references to top-Ks.
    """
    largest = [plain[-1], bare]
    by_rollouts = [row for row in plain if row["actors"] == bare["actors"]]
    by_actors = [row for row in plain if row["rollouts"] == bare["rollouts"]]
    lines = [
        "# The driver at scale",
        "",
        "CPU seconds (user and system, all threads) and memory of the driver's process in a step",
        f"of rollouts of {TOKENS:,} tokens. Made by `python benchmarks/driver_scale.py`; NumPy "
        f"{np.__version__}, Ray",
        f"{ray.__version__}, {platform.machine()}, {os.cpu_count()} cores under a load of "
        f"{os.getloadavg()[2]:.1f} in all, which makes CPU seconds",
        "dearer too. The reach at 1,000 actors and 100,000 rollouts: 1.2 s (2 % of a step of 60 s) "
        "and 4 GB.",
        "",
        "## Actors that are plain objects",
        "",
        "| actors | rollouts | filter, s | all else, s | of it, µs a rollout | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for row in [*plain, bare]:
        overlap = "" if row["overlap"] else " (`tip.overlap=false`)"
        lines.append(
            f"| {row['actors']:,} | {row['rollouts']:,}{overlap} | {row['filter']:.2f} | "
            f"{row['others']:.2f} | {1e6 * row['others'] / row['rollouts']:.0f} | "
            f"{row['peak'] / 1e9:.2f} |"
        )
    lines += [
        "",
        f"Growth with the rollouts, at {bare['actors']:,} actors: the power "
        f"{growth(by_rollouts, 'rollouts', 'others'):.2f} (filter: "
        f"{growth(by_rollouts, 'rollouts', 'filter'):.2f}). With the",
        f"actors, at {bare['rollouts']:,} rollouts: {growth(by_actors, 'actors', 'others'):.2f}. "
        "1 is linear, 0 none at all.",
        "",
        "Where it goes, in µs a rollout:",
        "",
        f"| part | {' | '.join(_name(row) for row in largest)} |",
        f"|---|{'---|' * len(largest)}",
        *_parts(largest),
        "",
    ]
    if not by_ray:
        return "\n".join(lines)
    lines += [
        "## Ray actors",
        "",
        "Half of them write, half are teachers, each in a process of its own that answers at once: "
        "a teacher",
        "is often asked about a single rollout. In µs a rollout:",
        "",
        f"| part | {' | '.join(_name(row) for row in by_ray)} |",
        f"|---|{'---|' * len(by_ray)}",
        *_parts(by_ray),
        "",
    ]
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> str:
    """A case as the head of a column."""
    extra = "" if row["overlap"] else ", `tip.overlap=false`"
    extra += "" if row["topk"] else ", no references to top-Ks"
    return f"{row['actors']:,} actors, {row['rollouts']:,} rollouts{extra}"


def _parts(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"| {name} | "
        + " | ".join(f"{1e6 * row['seconds'][part] / row['rollouts']:.1f}" for row in rows)
        + " |"
        for part, name in PARTS.items()
    ]


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--ray", type=int, nargs="*", default=[10, 30], help="may be left empty")
    parser.add_argument("--ray-rollouts", type=int, default=1000)
    parser.add_argument("--case", help="one case only, as JSON: used by this script itself")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(**json.loads(arguments.case))))
        return
    actors, rollouts = sorted(arguments.actors), sorted(arguments.rollouts)
    cases = [(size, count) for count in rollouts for size in actors]
    plain = [in_own_process(*case) for case in cases]
    bare = in_own_process(*cases[-1], overlap=False)
    count = arguments.ray_rollouts
    by_ray = [in_own_process(size, count, by_ray=True) for size in arguments.ray]
    if by_ray:
        by_ray.append(in_own_process(arguments.ray[0], count, by_ray=True, topk=0))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(report(plain, bare, by_ray))
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
