"""``opd-ray doctor``: would this run work here, and where would everything go?"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from opd_ray.cli.command import Commands, add_command, add_config_arguments
from opd_ray.cluster.nodes import Cluster, Node, this_machine
from opd_ray.errors import RUN_FAILED, InputError


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
  opd-ray doctor --budget --config tip_qwen3_8b_to_4b --gpus 1 --gpu-memory-gb 24
  opd-ray doctor --budget --config tip_math student.path=S teacher.path=T --gpus 4 \\
      --gpu-memory-gb 80
""",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--budget",
        action="store_true",
        help="which placements of the config's pair fit the machine, with the keys to set, and the "
        "largest pair for it",
    )
    parser.add_argument(
        "--budget-table",
        action="store_true",
        help="the best placement on 1 to 8 GPUs of 24 to 141 GB, as a Markdown table",
    )
    planned = parser.add_argument_group(
        "nodes to plan for", "instead of this machine or the config's cluster.address"
    )
    for option, kind, meaning in (
        ("--nodes", _number(int, 1, "a whole number above 0"), "how many (default 1)"),
        (
            "--cpus",
            _number(int, 1, "a whole number above 0"),
            "CPUs of each (default: this machine's)",
        ),
        (
            "--memory-gb",
            _number(float, 1, "gigabytes, 1 or more"),
            "main memory of each (default: this machine's)",
        ),
        ("--gpus", _number(int, 0, "a whole number, 0 or more"), "GPUs of each (default 0)"),
        (
            "--gpu-memory-gb",
            _number(float, 1, "gigabytes, 1 or more"),
            "memory of one GPU (default: not checked)",
        ),
    ):
        planned.add_argument(option, type=kind, help=meaning)


def _number(kind: type[int] | type[float], least: float, words: str) -> Callable[[str], Any]:
    """Reads an option's number, and refuses those below ``least``."""

    def read(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = -1
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r}: give {words}")
        return number

    return read


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 only if none of them is a failure."""
    if args.budget or args.budget_table:
        return _print_budget(args)
    from opd_ray.preflight.doctor import examine
    from opd_ray.study.cells import study_cells

    report = examine(args.config, args.overrides, _planned_cluster(args), study_cells)
    print(report.render())
    return 0 if report.passed else RUN_FAILED


def _print_budget(args: argparse.Namespace) -> int:
    """What fits; it looks at sizes alone, so no finding can fail."""
    from opd_ray.preflight.budget import budget, budget_table

    if args.budget_table:
        print(budget_table(args.config, args.overrides))
        return 0
    cluster = _planned_cluster(args) or this_machine()
    if len(cluster.nodes) > 1:
        raise InputError(f"--budget with --nodes {len(cluster.nodes)}: it plans one machine")
    print(budget(args.config, args.overrides, cluster))
    return 0


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
