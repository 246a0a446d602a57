"""`opd-ray prepare deepplanning`: the split, the prompts, the test file, and what is not there."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from deepplanning_data import CHECKOUT, needs_checkout, write_checkout, write_database

from opd_ray.cli import main
from opd_ray.config.data import DataKind, DataSettings
from opd_ray.data.load import load_prompts
from opd_ray.data.rows import MissingData
from opd_ray.data.sources import prepared_file
from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.travel.prepare import split


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepare(tmp_path: Path, *options: str) -> int:
    arguments = ["prepare", "deepplanning", "--from", str(tmp_path / "c"), *options]
    return main([*arguments, "--out", str(tmp_path / "out")])


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    """A checkout of ten tasks beside their databases."""
    write_checkout(tmp_path / "c")
    whole = write_database(tmp_path / "whole")
    for number in range(10):
        shutil.copytree(whole, tmp_path / "d" / f"id_{number}")
    return tmp_path / "d"


def test_prompts_and_the_evaluators_file(
    tmp_path: Path, databases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path, "--database", str(databases)) == 0
    said = capsys.readouterr().out
    assert "8 tasks to train on" in said
    assert "2 held out" in said
    assert "synthetic" not in said
    train = lines(tmp_path / "out" / "deepplanning_train.jsonl")
    held_out = lines(tmp_path / "out" / "deepplanning_heldout.jsonl")
    assert len(train) == 8
    days = Counter(json.loads(row["meta_info"])["days"] for row in held_out)
    assert days == {2: 1, 3: 1}
    assert {row["task_id"] for row in train + held_out} == {str(n) for n in range(10)}
    row = next(row for row in train + held_out if row["task_id"] == "7")
    meta = json.loads(row.pop("meta_info"))
    assert meta["hard_constraints"]["restaurant_must_eat_named"] == {"restaurant_name": "Bar 7"}
    assert row == {
        "id": "deepplanning_travel-7",
        "task_id": "7",
        "prompt": [
            {"role": "system", "content": "Plan a trip."},
            {"role": "user", "content": "Query 7."},
        ],
        "answer": None,
        "database": str(databases / "id_7"),
        "source": "deepplanning_travel",
    }
    test = json.loads((tmp_path / "out" / "deepplanning_heldout.json").read_text(encoding="utf-8"))
    assert [task["id"] for task in test] == [row["task_id"] for row in held_out]
    assert {task["databases"] for task in test} == {str(databases)}
    assert not any(task["synthetic"] for task in test)
    settings = DataSettings(
        kind=DataKind.prepared, path=str(tmp_path / "out" / "deepplanning_train")
    )
    prompts = load_prompts(settings, seed=0)
    assert len(prompts) == 8
    assert prompts.batch(0, 1)[0].source == "deepplanning_travel"


def test_the_split_is_that_of_its_seed(databases: Path, tmp_path: Path) -> None:
    tasks = Checkout.at(tmp_path / "c").travel_tasks
    assert split(tasks, 3) == split(tasks, 3)
    sides = {tuple(task["id"] for task in split(tasks, seed)[1]) for seed in range(20)}
    assert len(sides) > 5
    assert {len(side) for side in sides} == {2}
    assert sorted({n for side in sides for n in side}) == [str(n) for n in range(10)]


@needs_checkout
def test_the_split_of_the_benchmark() -> None:
    tasks = Checkout.at(CHECKOUT).travel_tasks
    train, held_out = split(tasks, 0)
    assert (len(train), len(held_out)) == (96, 24)
    assert Counter(task["meta_info"]["days"] for task in held_out) == dict.fromkeys(range(2, 8), 4)
    assert [t for t in tasks if t in train or t in held_out] == tasks


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda d: shutil.rmtree(d), "d: there is no such folder; unpack database_en.zip"),
        (lambda d: shutil.rmtree(d / "id_3"), "there is no folder id_3 for task 3; unpack"),
        (lambda d: (d / "id_3/hotels/hotels.csv").unlink(), "hotels.csv: is not there"),
        (lambda d: (d / "id_3/hotels/hotels.csv").write_text("a\n"), "has no column 'name'"),
        (
            lambda d: (d / "id_3/trains/trains.csv").unlink(),
            "trains.csv: is not there, and task 3 asks for train_seat_class",
        ),
    ],
)
def test_what_the_databases_lack_is_named(
    tmp_path: Path,
    databases: Path,
    break_it: Any,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_it(databases)
    assert prepare(tmp_path, "--database", str(databases)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_task_that_goes_by_train_needs_no_flights(tmp_path: Path, databases: Path) -> None:
    (databases / "id_3" / "flights" / "flights.csv").unlink()
    assert prepare(tmp_path, "--database", str(databases)) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "deepplanning"], "needs --from CHECKOUT"),
        (["prepare", "deepplanning", "--from", "/nowhere"], "--from /nowhere: there is no such"),
        (["prepare", "gsm8k", "--shopping", "1"], "--shopping is of deepplanning alone"),
        (["prepare", "gsm8k", "--synthetic"], "--synthetic is of deepplanning alone"),
        (["prepare", "gsm8k", "--seed", "0"], "--seed is of deepplanning alone"),
        (["prepare", "gsm8k", "--database", "x"], "--database is of deepplanning alone"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_run_without_the_prompts_says_how_to_make_them() -> None:
    for name in ("deepplanning_train", "deepplanning_heldout"):
        with pytest.raises(MissingData, match="opd-ray prepare deepplanning --from CHECKOUT --out"):
            prepared_file(f"/nowhere/{name}", "data")


@needs_checkout
def test_synthetic_databases_are_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = write_checkout(tmp_path / "c") / "benchmark/deepplanning/travelplanning"
    tasks = Checkout.at(CHECKOUT).travel_tasks[:6]
    query_file = checkout / "data" / "travelplanning_query_en.json"
    query_file.write_text(json.dumps(tasks), encoding="utf-8")
    assert prepare(tmp_path, "--synthetic", "--seed", "3") == 0
    assert "synthetic databases in" in capsys.readouterr().out
    rows = lines(tmp_path / "out" / "deepplanning_train.jsonl")
    rows += lines(tmp_path / "out" / "deepplanning_heldout.jsonl")
    assert {row["source"] for row in rows} == {"deepplanning_travel_synthetic"}
    where = tmp_path / "out" / "deepplanning_synthetic"
    assert {Path(row["database"]).parent for row in rows} == {where}
    # The same folder by name is known for what it is.
    assert prepare(tmp_path, "--database", str(where)) == 0
    assert "synthetic databases in" in capsys.readouterr().out
