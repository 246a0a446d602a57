"""``opd-ray deepplanning``: the plans of an evaluation, scored as benchmark and paper do."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from opd_ray.cli.command import Commands, add_command, path


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    summary = "what belongs to the DeepPlanning benchmark; score: figures of travel plans"
    parent = commands.add_parser("deepplanning", help=summary, description=summary)
    parser = add_command(
        parent.add_subparsers(metavar="WHAT", required=True),
        "score",
        run_score,
        summary="score the travel plans of an evaluation, by DeepPlanning and by the TIP paper",
        examples="""  opd-ray deepplanning score --responses evals/mine/travel/sampled.jsonl \\
      --from Qwen-Agent --out scores/mine
  opd-ray deepplanning score --responses a.jsonl b.jsonl --from Qwen-Agent \\
      --without-official --out scores/mine

The share of hard constraints that are met needs no database; the official scores do.
""",
    )
    parser.add_argument(
        "--responses",
        type=path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="records that opd-ray eval wrote (OUT/TASK/sampled.jsonl); several files are further "
        "samples of the same tasks",
    )
    parser.add_argument(
        "--from",
        dest="checkout",
        type=path,
        required=True,
        metavar="CHECKOUT",
        help="your clone of Qwen-Agent",
    )
    parser.add_argument(
        "--test",
        type=path,
        metavar="FILE",
        help="the tasks, as opd-ray prepare deepplanning wrote them (default: "
        "deepplanning_heldout.json in the folder OPD_RAY_DATA, or in ./data)",
    )
    parser.add_argument(
        "--database",
        type=path,
        metavar="FOLDER",
        help="the folder with a folder a task (default: that of the prompts)",
    )
    parser.add_argument(
        "--out",
        type=path,
        required=True,
        metavar="FOLDER",
        help="keep trajectories, plans and scores there",
    )
    parser.add_argument("--workers", type=int, default=4, help="threads of the official evaluator")
    parser.add_argument(
        "--without-official",
        action="store_true",
        help="leave the official evaluator out, which needs the databases, pandas and openai",
    )


def run_score(args: argparse.Namespace) -> int:
    """Read, judge, write, and print the figures."""
    from opd_ray.data.sources import prepared_folder
    from opd_ray.deepplanning.checkout import Checkout, read_tasks
    from opd_ray.deepplanning.responses import read_responses
    from opd_ray.deepplanning.synthetic.write import is_synthetic
    from opd_ray.deepplanning.travel.official import check_official, with_official
    from opd_ray.deepplanning.travel.prepare import HELD_OUT
    from opd_ray.deepplanning.travel.score import Judged, write_results
    from opd_ray.whole_file import write_whole

    out: Path = args.out
    checkout = Checkout.at(args.checkout)
    test = args.test or prepared_folder() / f"{HELD_OUT}.json"
    tasks = read_tasks(test, "make it with: opd-ray prepare deepplanning --from CHECKOUT")
    databases = args.database or Path(tasks[0].get("databases", checkout.travel_database))
    made_up = bool(tasks[0].get("synthetic")) or is_synthetic(databases)
    if not args.without_official:
        check_official(checkout, databases, tasks)
    responses = read_responses(args.responses, [str(task["id"]) for task in tasks])
    plans = Judged.of(tasks, responses)
    scores = replace(plans.scores(), synthetic=made_up)
    folders = write_results(out, plans, responses, args.responses[0].stem)
    write_whole(out / "problems.json", plans.problems_json())
    if not args.without_official:
        scores = with_official(scores, checkout, folders, test, databases, args.workers)
    write_whole(out / "scores.json", scores.to_json())
    print(scores)
    return 0
