"""``opd-ray study``: token-selection rules compared over seeds."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, add_config_arguments
from opd_ray.config.load import load_config
from opd_ray.importing import importing


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "study",
        run,
        summary="compare token-selection rules over seeds, cell by cell, resumable",
        examples="""  opd-ray study --config study
  opd-ray study --config study study.seeds=[0,1] run.output_dir=outputs/short_study
  opd-ray study --config study --report-only
""",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="write table and plots from the finished cells, without running any",
    )


def run(args: argparse.Namespace) -> int:
    """Run the cells that are missing, or only report."""
    config = load_config(args.config, args.overrides)
    with importing():
        from opd_ray.study.run import report, study

    if args.report_only:
        print(report(config))
        return 0
    return study(config)
