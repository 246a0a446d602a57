"""``opd-ray export``: what becomes of a trained student."""

from __future__ import annotations

import argparse
from pathlib import Path

from opd_ray.cli.command import Commands, add_command


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    export = add_command(
        commands,
        "export",
        run_export,
        summary="write a checkpoint as a plain Hugging Face folder",
        examples="""  opd-ray export --checkpoint outputs/demo/checkpoints/step_00000150 --out best
""",
    )
    export.add_argument(
        "--checkpoint", required=True, type=Path, metavar="DIR", help="a checkpoint's folder"
    )
    export.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the folder to write"
    )


def run_export(args: argparse.Namespace) -> int:
    """Export one checkpoint."""
    from opd_ray.export import export

    return export(args.checkpoint, args.out)
