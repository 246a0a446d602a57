"""``opd-ray eval`` and ``opd-ray export``: what becomes of a trained student."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from opd_ray.cli.command import Commands, add_command, add_config_arguments


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    evaluate = add_command(
        commands,
        "eval",
        run_evaluation,
        summary="evaluate a model on a config's eval tasks, without training",
        examples="""  opd-ray eval --config demo
  opd-ray eval --config demo --model outputs/demo/export
  opd-ray eval --config my_run.yaml --model FOLDER eval.tasks[0].samples=16
""",
    )
    add_config_arguments(evaluate)
    evaluate.add_argument(
        "--model", metavar="FOLDER", help="the model to evaluate (default: the config's student)"
    )
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON too")
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


def run_evaluation(args: argparse.Namespace) -> int:
    """Evaluate the config's student, or the given model in its place."""
    from opd_ray.config.load import load_config

    config = load_config(args.config, args.overrides)
    if args.model is not None:
        config = replace(config, student=replace(config.student, path=args.model))
    from opd_ray.evaluate import evaluate

    return evaluate(config, args.out)


def run_export(args: argparse.Namespace) -> int:
    """Export one checkpoint."""
    from opd_ray.export import export

    return export(args.checkpoint, args.out)
