"""``opd-ray train`` and ``opd-ray demo``: a training run from a configuration."""

from __future__ import annotations

import argparse
import sys

from opd_ray.cli.command import Commands, add_command, add_config_arguments
from opd_ray.cluster.retries import Retries, keep_running, start_count
from opd_ray.cluster.supervisor import Supervisor
from opd_ray.config.load import load_config
from opd_ray.importing import importing


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    train = add_command(
        commands,
        "train",
        run_training,
        summary="train a student under a teacher's judgement",
        examples="""  opd-ray train --config demo
  opd-ray train --config my_run.yaml run.output_dir=outputs/second trainer.ranks=2
  opd-ray train --config my_run.yaml --print-config
""",
    )
    add_config_arguments(train)
    demo = add_command(
        commands,
        "demo",
        run_training,
        summary="train the small pair that comes with the package (the config named demo)",
        examples="""  opd-ray demo
  opd-ray demo run.seed=1 run.output_dir=outputs/demo_1
  opd-ray demo tip.rule=random
""",
    )
    add_config_arguments(demo, default="demo")
    for parser in (train, demo):
        parser.add_argument(
            "--print-config",
            action="store_true",
            help="print the resolved configuration as YAML, with what every key does, and exit",
        )
        parser.add_argument(
            "--retries",
            type=start_count,
            default=0,
            metavar="N",
            help="when the run dies, start it again, until N starts in a row after the first have "
            "left no new checkpoint; not after bad input or Ctrl-C (default: %(default)s)",
        )


def run_training(args: argparse.Namespace) -> int:
    """Load, then print or train."""
    config = load_config(args.config, args.overrides)
    if args.print_config:
        from opd_ray.config.reference import commented_yaml

        print(commented_yaml(config), end="")
        return 0
    if args.retries:
        return _keep_running(args, config.run.output_dir)
    with importing():
        from opd_ray.coordinator.run import train

    return train(config)


def _keep_running(args: argparse.Namespace, output_dir: str) -> int:
    """The same command without ``--retries``, in a process of its own, as often as it takes."""
    this_program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    command = [sys.executable, *this_program[1:], "train", "--config", args.config]
    if args.traceback:
        command.append("--traceback")
    with Supervisor() as supervisor:
        return keep_running(
            [*command, *args.overrides], output_dir, Retries(args.retries), supervisor
        )
