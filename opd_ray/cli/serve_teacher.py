"""``opd-ray serve-teacher``: one teacher for several runs, in a Ray cluster that runs already."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, add_config_arguments
from opd_ray.config.load import load_config
from opd_ray.config.teacher import MAIN
from opd_ray.errors import ConfigError
from opd_ray.importing import importing


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "serve-teacher",
        run,
        summary="start a config's teacher as a named actor that several runs share",
        examples="""  opd-ray serve-teacher --config run.yaml --name judge cluster.address=auto
  opd-ray train --config run.yaml cluster.address=auto teacher.kind=actor \\
      teacher.actor_name=judge
  opd-ray serve-teacher --config run.yaml --name judge --stop cluster.address=auto
""",
    )
    add_config_arguments(parser)
    parser.add_argument("--name", required=True, help="the runs' teacher.actor_name")
    parser.add_argument(
        "--namespace", default="opd-ray", help="the runs' teacher.actor_namespace (default opd-ray)"
    )
    parser.add_argument(
        "--teacher",
        default=MAIN,
        metavar="NAME",
        help="which of the config's teachers: a name in teachers (default: the section teacher)",
    )
    parser.add_argument(
        "--replicas", type=int, help="processes that score (default: teacher.replicas)"
    )
    parser.add_argument(
        "--every",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="time between two lines of throughput (default 10)",
    )
    ending = parser.add_mutually_exclusive_group()
    ending.add_argument(
        "--detach", action="store_true", help="leave it running and return when it is ready"
    )
    ending.add_argument("--stop", action="store_true", help="end the teacher of that name")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or stop what is served."""
    if args.replicas is not None and args.replicas < 1:
        raise ConfigError(f"--replicas {args.replicas}: must be at least 1")
    if args.every <= 0:
        raise ConfigError(f"--every {args.every:g}: must be above 0")
    config = load_config(args.config, args.overrides)
    with importing():
        from opd_ray.serve_teacher import Serving, serve_teacher, stop_teacher

    if args.stop:
        return stop_teacher(config, args.name, args.namespace)
    serving = Serving(
        name=args.name,
        namespace=args.namespace,
        teacher=args.teacher,
        replicas=args.replicas,
        detach=args.detach,
        every_s=args.every,
    )
    return serve_teacher(config, serving)
