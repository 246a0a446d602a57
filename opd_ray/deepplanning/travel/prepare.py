"""``opd-ray prepare deepplanning``: the travel tasks as prompts, a fifth of them held out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.responses import SOURCE, prompt_id
from opd_ray.deepplanning.synthetic.write import is_synthetic
from opd_ray.deepplanning.travel.database import check_databases, task_folder
from opd_ray.deepplanning.travel.tools import travel_tools
from opd_ray.errors import ConfigError, WriteError
from opd_ray.seeds import derive_seed
from opd_ray.whole_file import write_whole

TRAIN, HELD_OUT = "deepplanning_train", "deepplanning_heldout"
# Of tasks whose databases are made up, so that no figure passes for one of the benchmark.
SYNTHETIC_SOURCE = "deepplanning_travel_synthetic"
HELD_OUT_SHARE = 0.2

Task = Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    folder: Path
    train: int  # tasks
    held_out: int
    databases: Path
    synthetic: bool

    def __str__(self) -> str:
        kind = "synthetic databases" if self.synthetic else "databases"
        return (
            f"DeepPlanning, travel, English: {self.train} tasks to train on in "
            f"{self.folder / TRAIN}.jsonl, {self.held_out} held out in {self.folder / HELD_OUT}"
            f".jsonl and, for the official evaluator, {self.folder / HELD_OUT}.json; {kind} in "
            f"{self.databases}\n"
            "licence of the benchmark: Apache-2.0"
        )


def prepare_travel(checkout: Checkout, databases: Path, out: Path, seed: int) -> Prepared:
    """Write the prompts of both sides, and the held-out tasks as the evaluator reads them.

    Args:
        checkout: has tasks, system prompt and tool schemas.
        databases: the folder with a folder a task; the prompts name them in full.
        out: the folder to write to.
        seed: of the split.

    Raises:
        MissingBenchmark: something of the checkout or the databases is not there.
        ConfigError: ``out`` cannot be written.
    """
    tasks, prompt = checkout.travel_tasks, checkout.travel_prompt
    travel_tools(checkout.folder)  # are they all there?
    databases = databases.expanduser().resolve()
    check_databases(databases, tasks, "--database")
    train, held_out = split(tasks, seed)
    synthetic = is_synthetic(databases)
    source = SYNTHETIC_SOURCE if synthetic else SOURCE
    files = {
        f"{TRAIN}.jsonl": prompt_lines(train, prompt, databases, source),
        f"{HELD_OUT}.jsonl": prompt_lines(held_out, prompt, databases, source),
        f"{HELD_OUT}.json": test_file(held_out, databases, synthetic),
    }
    for name, text in files.items():
        try:
            write_whole(out / name, text)
        except WriteError as error:
            raise ConfigError(f"--out = {error}") from error
    return Prepared(out, len(train), len(held_out), databases, synthetic)


def split(tasks: Sequence[Task], seed: int) -> tuple[list[Task], list[Task]]:
    """The tasks to train on and those held out, a fifth of every number of days; in file order.

    A task's side depends on its id, the seed and the other tasks of its length alone.
    """
    by_days: dict[int, list[Task]] = defaultdict(list)
    for task in tasks:
        by_days[task["meta_info"]["days"]].append(task)
    held_out = set()
    for group in by_days.values():
        drawn = sorted(group, key=lambda task: derive_seed(seed, "deepplanning", str(task["id"])))
        held_out |= {task["id"] for task in drawn[: round(len(group) * HELD_OUT_SHARE)]}
    return (
        [task for task in tasks if task["id"] not in held_out],
        [task for task in tasks if task["id"] in held_out],
    )


def test_file(tasks: Sequence[Task], databases: Path, synthetic: bool) -> str:
    """Tasks as the official evaluator reads them, with two keys more, which are for us."""
    more = {"databases": str(databases), "synthetic": synthetic}
    return json.dumps([{**task, **more} for task in tasks], ensure_ascii=False, indent=1) + "\n"


def prompt_lines(tasks: Sequence[Task], prompt: str, databases: Path, source: str) -> str:
    """A line of JSON a task: what :class:`TravelEnvironment` and the data pipeline read."""
    rows = [
        {
            "id": prompt_id(task["id"]),
            "task_id": str(task["id"]),
            "prompt": [
                {"role": "system", "content": prompt},
                {"role": "user", "content": task["query"]},
            ],
            "answer": None,
            "database": str(task_folder(databases, task["id"])),
            "meta_info": json.dumps(task["meta_info"], ensure_ascii=False),
            "source": source,
        }
        for task in tasks
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
