"""``opd-ray make-pair``: train the demo's teacher and its warmed-up student."""

from __future__ import annotations

import argparse
from pathlib import Path

from opd_ray.cli.command import Commands, add_command
from opd_ray.errors import ConfigError


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "make-pair",
        run,
        summary="make a small teacher and student for the chain_sum task by supervised training",
        examples="""  opd-ray make-pair --out pair
  opd-ray make-pair --terms 4 --digits 2 --seed 1 --out harder_pair
  opd-ray train --config demo student.path=pair/student teacher.path=pair/teacher
""",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the folder to write"
    )
    parser.add_argument("--terms", type=int, default=3, help="terms of a sum (default 3)")
    parser.add_argument("--digits", type=int, default=2, help="digits of a term (default 2)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights and problems (default 0)"
    )
    parser.add_argument(
        "--teacher-steps",
        type=int,
        default=400,
        help="supervised steps of the teacher (default 400)",
    )
    parser.add_argument(
        "--student-steps", type=int, default=400, help="most steps of the student (default 400)"
    )
    parser.add_argument(
        "--student-accuracy",
        type=float,
        default=0.6,
        help="share of problems at which the student's warm-up stops (default 0.6)",
    )


def run(args: argparse.Namespace) -> int:
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
