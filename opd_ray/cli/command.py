"""What the commands have in common: how one is declared, and the configuration arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opd_ray.config.paths import expanded
from opd_ray.errors import ConfigError

Commands = Any  # argparse keeps the type of what add_subparsers returns to itself


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    examples: str,
) -> argparse.ArgumentParser:
    """A command with help, examples and ``--traceback``."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the code an error arose"
    )
    parser.set_defaults(run=run, takes_overrides=False)
    return parser


def path_text(text: str) -> str:
    """An argument that is a path, or a name where a path may stand; ``~`` is the home folder."""
    try:
        return expanded(text, "path")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    """An argument that is a path."""
    return Path(path_text(text))


def add_config_arguments(
    parser: argparse.ArgumentParser, default: str | None = None, *, required: bool = True
) -> None:
    """``--config`` (unless a default settles it) and ``key=value`` overrides."""
    if default is None:
        parser.add_argument(
            "--config",
            required=required,
            metavar="NAME_OR_PATH",
            help="a packaged config's name, or a file ending in .yaml",
        )
    else:
        parser.set_defaults(config=default)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values that replace the config's, e.g. trainer.ranks=2 or eval.tasks[0].samples=4",
    )
    parser.set_defaults(takes_overrides=True)
