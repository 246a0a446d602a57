"""The database of one travel task: a folder of CSV files, read once a process."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_ray.deepplanning.checkout import MissingBenchmark
from opd_ray.deepplanning.travel.tables import Table, read_table

_LEG = (
    *("origin_city", "destination_city", "dep_date", "route_index", "segment_index"),
    *("seat_class", "seat_status", "duration", "price"),
    *("dep_datetime", "dep_station_code", "dep_station_name"),
    *("arr_datetime", "arr_station_code", "arr_station_name"),
)
# Each table's file, and the columns without which the tools cannot answer.
FILES = {
    "trains": ("trains/trains.csv", (*_LEG, "train_type", "train_no")),
    "flights": (
        "flights/flights.csv",
        (*_LEG, "airline", "flight_no", "equip_size", "equip_type", "manufacturer"),
    ),
    "hotels": ("hotels/hotels.csv", ("name", "hotel_star", "brand", "price")),
    "attractions": ("attractions/attractions.csv", ("attraction_name", "attraction_type")),
    "locations": ("locations/locations_coords.csv", ("poi_name", "latitude", "longitude")),
    "ways": (
        "transportation/distance_matrix.csv",
        ("origin", "destination", "distance_meters", "duration_minutes", "cost"),
    ),
    "restaurants": (
        "restaurants/restaurants.csv",
        ("restaurant_name", "query_latitude", "query_longitude"),
    ),
}
# A trip goes by train or by plane: the files of one of them may lack where no constraint needs it.
_EITHER = ("trains", "flights")
_REMEDY = (
    "unpack database_en.zip of https://huggingface.co/datasets/Qwen/DeepPlanning, or make one "
    "with: opd-ray prepare deepplanning --synthetic"
)


@dataclass(frozen=True)
class Database:
    """The tables of a task by name; trains or flights may lack."""

    tables: Mapping[str, Table]

    def table(self, name: str) -> Table | None:
        """The table of that name; None where the task has none."""
        return self.tables.get(name)


_READ: dict[Path, Database] = {}
_READING = threading.Lock()


def open_database(folder: str | Path) -> Database:
    """The database in a task's folder, the same object whenever it is asked for again.

    Raises:
        MissingBenchmark: names the folder, file, column or line that is not there or not right.
    """
    path = Path(folder).expanduser().resolve()
    with _READING:
        if path not in _READ:
            _READ[path] = _read(path)
        return _READ[path]


def task_folder(databases: Path, task_id: object) -> Path:
    """The folder of a task among those of all tasks."""
    return databases / f"id_{task_id}"


def check_databases(databases: Path, tasks: Collection[Mapping[str, Any]], named: str) -> None:
    """Refuse databases that lack something of one of the tasks.

    Args:
        databases: the folder with a folder a task.
        named: the option that says where it is.

    Raises:
        MissingBenchmark: names the first thing that is not there.
    """
    if not databases.is_dir():
        raise MissingBenchmark(f"{named} {databases}: there is no such folder; {_REMEDY}")
    lacking = [task["id"] for task in tasks if not task_folder(databases, task["id"]).is_dir()]
    if lacking:
        more = f" ({len(lacking)} tasks have none)" if len(lacking) > 1 else ""
        raise MissingBenchmark(
            f"{named} {databases}: there is no folder id_{lacking[0]} for task {lacking[0]}{more}; "
            f"{_REMEDY}"
        )
    for task in tasks:
        folder = task_folder(databases, task["id"])
        tables = _read(folder).tables
        for name in _EITHER:
            kind = name.removesuffix("s")
            needs = [k for k in task["meta_info"]["hard_constraints"] if k.startswith(f"{kind}_")]
            if needs and name not in tables:
                raise MissingBenchmark(
                    f"{folder / FILES[name][0]}: is not there, and task {task['id']} asks for "
                    f"{needs[0]}; {_REMEDY}"
                )


def _read(folder: Path) -> Database:
    if not folder.is_dir():
        raise MissingBenchmark(f"{folder}: there is no such database; {_REMEDY}")
    tables = {}
    for name, (file, columns) in FILES.items():
        path = folder / file
        if not path.is_file():
            if name in _EITHER:
                continue
            raise MissingBenchmark(f"{path}: is not there; {_REMEDY}")
        table = read_table(path)
        for column in columns:
            if column not in table.columns:
                have = ", ".join(table.columns)
                raise MissingBenchmark(f"{path}: has no column {column!r} (it has {have})")
        tables[name] = table
    if not any(name in tables for name in _EITHER):
        raise MissingBenchmark(f"{folder / FILES['trains'][0]}: is not there; {_REMEDY}")
    return Database(tables)
