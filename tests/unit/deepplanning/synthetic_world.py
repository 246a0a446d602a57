"""Trips to make tables for, and the databases of all tasks of the benchmark."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from deepplanning_data import CHECKOUT

from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.synthetic.write import write_databases

SEEDS = range(30)
Row = dict[str, str]


class AllTasks:
    """The tasks of the clone, and their databases in a folder."""

    def __init__(self, folder: Path) -> None:
        self.tasks = Checkout.at(CHECKOUT).travel_tasks
        self.databases = folder
        write_databases(self.tasks, folder, 0)

    def table(self, number: str, name: str) -> list[Row]:
        """The rows of a file of a task's database."""
        with (self.databases / f"id_{number}" / name).open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


def task(number: int, constraints: dict[str, Any], **other: Any) -> dict[str, Any]:
    meta = {
        "org": "Wuhan",
        "dest": ["Nanjing"],
        "days": 3,
        "depart_date": "2025-11-12",
        "return_date": "2025-11-14",
        "depart_weekday": 3,
        "people_number": 3,
        "room_number": 2,
        "hard_constraints": constraints,
    }
    return {"id": str(number), "query": "A trip, please.", "meta_info": meta | other}


def best(candidates: list[Row], only: Any, rank: Any, name: str) -> list[str]:
    """The names of the best among the candidates; all of them where nothing ranks them."""
    among = [row for row in candidates if only is None or only(row)]
    if rank is None:
        return [row[name] for row in among]
    top = min(rank(row) for row in among)
    return [row[name] for row in among if rank(row) == top]
