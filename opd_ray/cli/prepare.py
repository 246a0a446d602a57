"""``opd-ray prepare``: a well-known set of problems in the form that runs and evaluations read."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, path, path_text
from opd_ray.errors import ConfigError


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "prepare",
        run,
        summary="write a well-known set of problems as JSONL, from the hub or from local files",
        examples="""  opd-ray prepare math500
  opd-ray prepare dapo_math_17k --out /shared/data/dapo_math_17k.jsonl
  opd-ray prepare aime24 --from downloads/aime_2024.parquet
  opd-ray prepare deepplanning --from Qwen-Agent --database database_en
  opd-ray prepare deepplanning --from Qwen-Agent --synthetic
  opd-ray prepare deepplanning --from Qwen-Agent --shopping 1

sets: deepplanning, dapo_math_17k, deepmath, gsm8k, gsm8k_train, math500, aime24, aime25, amc23
""",
    )
    parser.add_argument("name", metavar="SET", help="one of the sets below")
    parser.add_argument(
        "--from",
        dest="origins",
        type=path_text,
        nargs="+",
        default=[],
        metavar="HUB_OR_FILES",
        help="a hub name, a folder that the datasets library reads, or .jsonl, .json or .parquet "
        "files (default: the set's own place on the Hugging Face hub); of deepplanning, your clone "
        "of Qwen-Agent",
    )
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="the file to write (default: SET.jsonl in the folder OPD_RAY_DATA, or in ./data); of "
        "deepplanning the folder for its files",
    )
    plans = parser.add_argument_group("deepplanning alone")
    plans.add_argument(
        "--database",
        type=path,
        metavar="FOLDER",
        help="where its databases are unpacked, a folder a task (default: database/database_en in "
        "the checkout's travelplanning)",
    )
    plans.add_argument(
        "--synthetic",
        action="store_true",
        help="make databases up, from what the tasks ask for, and write them to --database "
        "(default: deepplanning_synthetic beside the prompts); figures on them say nothing of the "
        "benchmark",
    )
    plans.add_argument(
        "--shopping",
        type=int,
        choices=(1, 2, 3),
        metavar="LEVEL",
        help="the shopping tasks of level 1, 2 or 3, for evaluation, in place of the travel tasks; "
        "--database is then the folder of that level's cases",
    )
    plans.add_argument(
        "--seed", type=int, help="of what is made up and which tasks are held out (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare one set and say what became of its rows."""
    from opd_ray.data.prepare import prepare
    from opd_ray.data.sources import prepared_folder

    if args.name == "deepplanning":
        return _deepplanning(args)
    given = {"database": args.database, "synthetic": args.synthetic or None, "seed": args.seed}
    given |= {"shopping": args.shopping}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"--{option} is of deepplanning alone; leave it out")
    out = args.out or prepared_folder() / f"{args.name}.jsonl"
    print(prepare(args.name, args.origins, out))
    return 0


def _deepplanning(args: argparse.Namespace) -> int:
    from opd_ray.data.sources import prepared_folder
    from opd_ray.deepplanning.checkout import Checkout
    from opd_ray.deepplanning.shopping.prepare import prepare_shopping
    from opd_ray.deepplanning.synthetic.write import write_databases
    from opd_ray.deepplanning.travel.prepare import prepare_travel

    if len(args.origins) != 1:
        raise ConfigError("prepare deepplanning needs --from CHECKOUT: your clone of Qwen-Agent")
    checkout, out = Checkout.at(args.origins[0]), args.out or prepared_folder()
    if args.shopping is not None:
        if args.synthetic or args.seed is not None:
            raise ConfigError("--shopping: has neither --synthetic nor --seed; leave them out")
        print(prepare_shopping(checkout, args.database, out, args.shopping))
        return 0
    seed = args.seed or 0
    databases = args.database or checkout.travel_database
    if args.synthetic:
        databases = args.database or out / "deepplanning_synthetic"
        write_databases(checkout.travel_tasks, databases, seed)
    print(prepare_travel(checkout, databases, out, seed))
    return 0
