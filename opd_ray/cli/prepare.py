"""``opd-ray prepare``: a well-known set of problems in the form that runs and evaluations read."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, path, path_text


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

sets: dapo_math_17k, deepmath, gsm8k, gsm8k_train, math500, aime24, aime25, amc23
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
        "files (default: the set's own place on the Hugging Face hub)",
    )
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="the file to write (default: SET.jsonl in the folder OPD_RAY_DATA, or in ./data)",
    )


def run(args: argparse.Namespace) -> int:
    """Prepare one set and say what became of its rows."""
    from opd_ray.data.prepare import prepare
    from opd_ray.data.sources import prepared_folder

    out = args.out or prepared_folder() / f"{args.name}.jsonl"
    print(prepare(args.name, args.origins, out))
    return 0
