"""``opd-ray export``: a checkpoint's student as a plain Hugging Face folder, or its adapter."""

from __future__ import annotations

import argparse

from opd_ray.cli.command import Commands, add_command, path
from opd_ray.config.choices import BaseFormat, LoraForm
from opd_ray.config.load import load_config
from opd_ray.config.lora import LoraSettings
from opd_ray.errors import ConfigError, OutputFolderError


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    export = add_command(
        commands,
        "export",
        run,
        summary="write a checkpoint as a plain Hugging Face folder",
        examples="""  opd-ray export --checkpoint outputs/demo/checkpoints/step_00000150 --out best
  opd-ray export --checkpoint outputs/demo --out newest
  opd-ray export --checkpoint outputs/lora --adapter --out adapter
""",
    )
    export.add_argument(
        "--checkpoint",
        required=True,
        type=path,
        metavar="DIR",
        help="a checkpoint's folder, or a run's: its newest",
    )
    export.add_argument(
        "--out", required=True, type=path, metavar="DIR", help="the folder to write"
    )
    export.add_argument(
        "--base",
        type=path,
        metavar="DIR",
        help="the model folder to take configs and tokenizer from (default: what the checkpoint "
        "kept of the run's student; with student.lora, which needs its weights too, the run's own)",
    )
    export.add_argument(
        "--adapter",
        action="store_true",
        help="of a student trained with student.lora: write the adapter alone, for peft or vLLM",
    )


def run(args: argparse.Namespace) -> int:
    """Write weights, configuration and tokenizer of a checkpoint's student.

    Raises:
        CheckpointError: there is no whole checkpoint.
        OutputFolderError: ``--out`` holds something already.
    """
    from opd_ray.output.checkpoint import check_trainer, read_state
    from opd_ray.output.meant import meant_checkpoint

    checkpoint, out = meant_checkpoint(args.checkpoint), args.out
    state = read_state(checkpoint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputFolderError(f"--out = {str(out)!r}: not empty; choose a new folder")
    if checkpoint != args.checkpoint:
        print(f"--checkpoint {args.checkpoint}: taking {checkpoint}")
    check_trainer(checkpoint)
    config = load_config(str(checkpoint / "config.yaml"))
    form = LoraForm.adapter if args.adapter else LoraForm.merged
    _check_form(config.student.lora, form)
    from actors.trainer.export import export_checkpoint

    export_checkpoint(checkpoint / "trainer", config.student, config.trainer, out, args.base, form)
    what = "adapter" if args.adapter else "student"
    print(f"exported the {what} of step {state.step} to {out}")
    return 0


def _check_form(lora: LoraSettings, form: LoraForm) -> None:
    """Refuse an adapter of a student that has none, and one merged into four-bit weights.

    Raises:
        ConfigError: naming what to do.
    """
    if form is LoraForm.adapter and not lora.on:
        raise ConfigError(
            "--adapter: the student was trained whole (student.lora.rank = 0); leave it out"
        )
    if form is LoraForm.merged and lora.base is BaseFormat.nf4:
        raise ConfigError(
            "--adapter is missing: with student.lora.base = nf4 an adapter added to the weights "
            "would be rounded away; export it alone"
        )
