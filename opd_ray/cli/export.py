"""``opd-ray export``: a checkpoint's student as a plain Hugging Face folder."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, path
from opd_ray.config.load import load_config
from opd_ray.errors import OutputFolderError


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    export = add_command(
        commands,
        "export",
        run,
        summary="write a checkpoint as a plain Hugging Face folder",
        examples="""  opd-ray export --checkpoint outputs/demo/checkpoints/step_00000150 --out best
""",
    )
    export.add_argument(
        "--checkpoint", required=True, type=path, metavar="DIR", help="a checkpoint's folder"
    )
    export.add_argument(
        "--out", required=True, type=path, metavar="DIR", help="the folder to write"
    )


def run(args: argparse.Namespace) -> int:
    """Write weights, configuration and tokenizer of a checkpoint's student.

    Raises:
        CheckpointError: the checkpoint is broken.
        OutputFolderError: ``--out`` holds something already.
    """
    from opd_ray.output.checkpoint import read_state

    checkpoint, out = args.checkpoint, args.out
    state = read_state(checkpoint)
    if out.exists() and any(out.iterdir()):
        raise OutputFolderError(f"--out = {str(out)!r}: not empty; choose a new folder")
    config = load_config(str(checkpoint / "config.yaml"))
    from actors.trainer.export import export_checkpoint

    export_checkpoint(checkpoint / "trainer", config.student, config.trainer, out)
    print(f"exported the student of step {state.step} to {out}")
    return 0
