"""``opd-ray report``: the page of a run, of a study, or of several runs side by side."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, path


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    report = add_command(
        commands,
        "report",
        run,
        summary="write the page of a run or a study, or one that compares several runs",
        examples="""  opd-ray report outputs/demo
  opd-ray report outputs/study
  opd-ray report outputs/a outputs/b --out a_and_b.html
""",
    )
    report.add_argument(
        "runs", nargs="+", type=path, metavar="RUN", help="a run's or a study's folder"
    )
    report.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="the file to write (default: RUN/report.html, of several comparison.html here)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    from pathlib import Path

    from opd_ray.report.page import write_comparison, write_report
    from opd_ray.study.page import is_study, write_study_page

    if len(args.runs) == 1:
        page = args.out or args.runs[0] / "report.html"
        write = write_study_page if is_study(args.runs[0]) else write_report
        write(args.runs[0], page)
    else:
        page = args.out or Path("comparison.html")
        write_comparison(args.runs, page)
    print(page)
    return 0
