"""The benchmark's own evaluator, unchanged, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opd_ray.borders import writing
from opd_ray.deepplanning.checkout import Checkout, MissingBenchmark, read_json
from opd_ray.deepplanning.estimate import share
from opd_ray.deepplanning.travel.database import check_databases
from opd_ray.deepplanning.travel.score import TravelScores
from opd_ray.errors import InputError, RunError

# As the evaluator names them, for a plan and in the mean.
SCORES = {
    "commonsense_weighted_score": "commonsense_score",
    "personalized_score": "personalized_score",
    "composite_score": "composite_score",
    "case_acc": "case_acc",
}
_CALL = """
import json, sys
from pathlib import Path
job = json.load(sys.stdin)
sys.path.insert(0, job["travel"])
from evaluation import evaluate_plans
for folder in job["folders"]:
    evaluate_plans(Path(folder), Path(job["test"]), Path(job["databases"]), workers=job["workers"])
"""


class EvaluatorFailed(RunError):
    """The official evaluator ended with an error of its own."""


def check_official(
    checkout: Checkout, databases: Path, tasks: Collection[Mapping[str, Any]]
) -> None:
    """Refuse what the evaluator cannot be run with, before anything is written.

    Raises:
        MissingBenchmark: the evaluator or a database is not there.
    """
    evaluator = checkout.travel / "evaluation" / "eval_converted.py"
    if not evaluator.is_file():
        raise MissingBenchmark(f"{evaluator}: is not there; clone Qwen-Agent again")
    check_databases(databases, tasks, "--database")


def with_official(
    scores: TravelScores,
    checkout: Checkout,
    folders: Sequence[Path],
    test_file: Path,
    databases: Path,
    workers: int = 4,
) -> TravelScores:
    """``scores`` with those of the official evaluator, means over tasks and samples.

    Its own summaries stay in ``<folder>/evaluation``, what it prints in ``evaluator.log`` beside
    the folders.

    Args:
        folders: of :func:`opd_ray.deepplanning.travel.score.write_results`, one a sample.
        test_file: the tasks; the evaluator counts those without a plan as 0.
        databases: the folder with a folder a task, as :func:`check_official` lets it pass.
        workers: threads of the evaluator.

    Raises:
        InputError: a package that the evaluator needs is not installed.
        EvaluatorFailed: it ended with another error.
    """
    _run(checkout, folders, test_file, databases, workers)
    names = [str(task["id"]) for task in read_json(test_file)]
    sums: dict[str, dict[str, float]] = {score: dict.fromkeys(names, 0.0) for score in SCORES}
    failed = 0
    for folder in folders:
        for result in _results(folder):
            if not result["success"]:
                failed += 1
                continue
            for score in SCORES:
                sums[score][result["sample_id"]] += result["scores"][score]
    whole = [float(len(folders))] * len(names)
    official = {SCORES[score]: share(list(of.values()), whole) for score, of in sums.items()}
    return replace(scores, official=official, official_failed=failed)


def _run(
    checkout: Checkout, folders: Sequence[Path], test_file: Path, databases: Path, workers: int
) -> None:
    job = {
        "travel": str(checkout.travel),
        "folders": [str(folder.resolve()) for folder in folders],
        "test": str(test_file.resolve()),
        "databases": str(databases.expanduser().resolve()),
        "workers": workers,
    }
    log = folders[0].parent / "evaluator.log"
    with writing(log):
        printed = log.open("w", encoding="utf-8")
    with printed:
        ended = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", _CALL],
            input=json.dumps(job),
            stdout=printed,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            cwd=checkout.travel,
            check=False,
        )
        printed.write(ended.stderr)
    if ended.returncode == 0:
        return
    last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    if last.startswith("ModuleNotFoundError"):
        raise InputError(
            f"the official evaluator in {checkout.travel} cannot be imported: {last}; install "
            f"what it needs beside opd-ray ({checkout.folder / 'requirements.txt'}), or leave its "
            "scores out with --without-official"
        )
    raise EvaluatorFailed(f"the official evaluator failed: {last}; all that it said is in {log}")


def _results(folder: Path) -> list[dict[str, Any]]:
    """What the evaluator says of every plan; [] where there was none to say something of."""
    summary = folder / "evaluation" / "evaluation_summary.json"
    if not summary.is_file() and not any((folder / "converted_plans").iterdir()):
        return []
    return read_json(summary)["results"]
