"""``opd-ray doctor``: would this run work here, and where would everything go?"""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, add_config_arguments
from opd_ray.cluster.nodes import Cluster, Node, this_machine
from opd_ray.errors import RUN_FAILED


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "doctor",
        run,
        summary="check machine, packages, config, data and pairing without training",
        examples="""  opd-ray doctor --config demo
  opd-ray doctor --config my_run.yaml trainer.ranks=2
  opd-ray doctor --config my_run.yaml --cpus 64 --memory-gb 512 --gpus 8 --gpu-memory-gb 80
""",
    )
    add_config_arguments(parser)
    planned = parser.add_argument_group(
        "nodes to plan for", "instead of this machine or the config's cluster.address"
    )
    for option, kind, meaning in (
        ("--nodes", int, "how many (default 1)"),
        ("--cpus", int, "CPUs of each (default: this machine's)"),
        ("--memory-gb", float, "main memory of each (default: this machine's)"),
        ("--gpus", int, "GPUs of each (default 0)"),
        ("--gpu-memory-gb", float, "memory of one GPU (default: not checked)"),
    ):
        planned.add_argument(option, type=kind, help=meaning)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 only if none of them is a failure."""
    from opd_ray.preflight.doctor import examine
    from opd_ray.study.cells import study_cells

    report = examine(args.config, args.overrides, _planned_cluster(args), study_cells)
    print(report.render())
    return 0 if report.passed else RUN_FAILED


def _planned_cluster(args: argparse.Namespace) -> Cluster | None:
    """The cluster that the arguments describe; None when they describe none."""
    given = (args.nodes, args.cpus, args.memory_gb, args.gpus, args.gpu_memory_gb)
    if all(value is None for value in given):
        return None
    here = this_machine().nodes[0]
    return Cluster(
        tuple(
            Node(
                name=f"node-{number}",
                cpus=args.cpus or here.cpus,
                memory_bytes=int(args.memory_gb * 1e9) if args.memory_gb else here.memory_bytes,
                gpus=args.gpus or 0,
                gpu_memory_bytes=int(args.gpu_memory_gb * 1e9) if args.gpu_memory_gb else None,
            )
            for number in range(args.nodes or 1)
        )
    )
