"""What every process holds of the main memory in its turn and in those of others.

    python benchmarks/turns_memory.py                                     # the demo's pair
    python benchmarks/turns_memory.py --config smollm2_gsm8k KEY=VALUE ...

A real run with `cluster.placement: turns`. The resident set of every actor's process is read
whenever a turn ends, before memory is given back, without pages of Ray's object store: these are
the same ones in every process. Steps after the first count. Needs Linux. Prints only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from uuid import uuid4

from gpu_check.marked import marked

import opd_ray
from opd_ray.cluster.placed_actor import Role
from opd_ray.pools.turns import Turns

MIB = 2**20
STEPS = 4
# In the environment of Ray's daemons, and so of the actors that they start.
MARK = "OPD_RAY_TURNS_MEMORY"
# Ray gives a process its actor's name as title.
ACTORS: dict[str, Role] = {
    "RolloutActor": "rollout",
    "TeacherActor": "teacher",
    "TrainerActor": "trainer",
}
KEYS = (
    "cluster.placement=turns",
    f"run.steps={STEPS}",
    "run.resume=never",
    "run.checkpoint_every=0",
    "run.export_at_end=false",
    "eval.every=0",
    "eval.tasks=[]",
    "eval.kl_prompts=0",
    "eval.teacher_accuracy=false",
)
# By role: resident bytes of its first process.
Held = Mapping[Role, int]
# Of a turn that has ended: whose it was.
Turn = tuple[Role, Held]


def held(mark: str) -> Held:
    """What the actors with this mark hold now."""
    found: dict[Role, int] = {}
    for folder in marked(MARK, mark):
        title = (folder / "cmdline").read_bytes().decode(errors="replace")
        role = next((role for name, role in ACTORS.items() if f"ray::{name}" in title), None)
        if role is not None:
            status = (folder / "status").read_text().splitlines()
            sizes = [line.split()[1] for line in status if line.startswith(("RssAnon", "RssFile"))]
            found.setdefault(role, 1024 * sum(map(int, sizes)))
    return found


def watched(turns: list[Turn], mark: str) -> Callable[[Turns, Role], None]:
    """As :meth:`Turns.to`, which says first what all hold where a turn ends."""
    plain = Turns.to

    def to(order: Turns, role: Role) -> None:
        if order.at_work is not None and order.at_work != role:
            turns.append((order.at_work, held(mark)))
        plain(order, role)

    return to


def table(turns: Sequence[Turn]) -> list[str]:
    """Lines of Markdown, a process a line: the most at the ends of its turns and of others'."""
    last = turns[len(turns) // STEPS :]
    lines = ["| process | in its turn, MiB | asleep, MiB | given back |", "|---|---:|---:|---:|"]
    for role in ACTORS.values():
        awake = max(now[role] for whose, now in last if whose == role)
        asleep = max(now[role] for whose, now in last if whose != role)
        given = 1 - asleep / awake
        lines.append(f"| {role} | {awake / MIB:,.0f} | {asleep / MIB:,.0f} | {given:.0%} |")
    together = [sum(now.values()) for _, now in last]
    lines += ["", f"All together {max(together) / MIB:,.0f} MiB at most."]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="demo")
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    arguments = parser.parse_args(argv)
    mark = os.environ[MARK] = uuid4().hex
    turns: list[Turn] = []
    Turns.to = watched(turns, mark)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        keys = [*KEYS, f"run.output_dir={folder}/run", *arguments.overrides]
        opd_ray.train(opd_ray.load_config(arguments.config, keys))
    print("\n".join(table(turns)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
