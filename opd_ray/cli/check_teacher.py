"""``opd-ray check-teacher``: does a teacher keep the contract that a run relies on?"""

from __future__ import annotations

import argparse

from opd_ray.cli.checks import tell
from opd_ray.cli.command import Commands, add_command, add_config_arguments
from opd_ray.config.load import load_config
from opd_ray.config.teacher import MAIN


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "check-teacher",
        run,
        summary="ask a config's teacher what a run would ask, and name every broken promise",
        examples="""  opd-ray check-teacher --config my_run.yaml
  opd-ray check-teacher --config my_run.yaml teacher.class_path=my_module:MyTeacher
  opd-ray check-teacher --config examples/custom_teacher/class.yaml teacher.topk=8
""",
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the violations; 0 only if there is none."""
    config = load_config(args.config, args.overrides)
    from opd_ray.preflight.contract.check import check_teacher

    violations = check_teacher(config)
    if code := tell(violations, "the contract of a teacher"):
        return code
    for name, teacher in config.teacher_set.working.items():
        called = "teacher" if name == MAIN else f"teacher {name}"
        print(f"the {called} of kind {teacher.settings.kind} keeps its contract")
    return 0
