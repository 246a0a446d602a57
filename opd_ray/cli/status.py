"""``opd-ray status``: how a run stands, from another terminal."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, path
from opd_ray.errors import RUN_FAILED


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "status",
        run,
        summary="tell how a run stands: what it does now, how far it is, its last figures",
        examples="""  opd-ray status outputs/demo
  watch opd-ray status outputs/demo

exit code: 0 at work or finished, 1 stopped, failed or dead, 2 there is no run.
""",
    )
    parser.add_argument("folder", type=path, metavar="RUN", help="the run.output_dir of a run")


def run(args: argparse.Namespace) -> int:
    """Print it; see opd_ray.output.status."""
    from opd_ray.output.status import read_status

    status = read_status(args.folder)
    for line in status.lines():
        print(line)
    return 0 if status.well else RUN_FAILED
