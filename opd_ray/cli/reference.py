"""Every command with its help, as a page:

python -m opd_ray.cli.reference > docs/commands.md
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from unittest import mock

from opd_ray.cli import make_parser

_WIDTH = 92
_HEAD = """# The command line

```bash
opd-ray --help
opd-ray train --help
```

| exit code | meaning |
| --- | --- |
| 0 | success |
| 1 | a run that failed, a check that found faults, the `status` of a run that is not well |
| 2 | bad input |
| 130 | stopped by Ctrl-C or another signal |
| 141 | nobody reads the output any more (`\\| head`); a run goes on |

Known errors are one sentence with the key and the remedy. `--traceback` shows where in the code
they arose.

| variable | meaning |
| --- | --- |
| `OPD_RAY_DATA` | where prepared sets lie (`./data`) |
| `OPD_RAY_DEEPPLANNING` | your clone of Qwen-Agent, for DeepPlanning (`./Qwen-Agent`) |
| `OPD_RAY_CACHE` | where made and fetched pairs lie (`~/.cache/opd-ray`) |
| `OPD_RAY_TRACEBACK` | 1: as `--traceback` |
| `OPD_RAY_SETUP` | `none`: the launch scripts install nothing |
| `PYTHON`, `CXX` | the interpreter that `.venv` is made with, the C++ compiler |

Characters that a terminal's encoding lacks are spelled `\\xfc`. Text on the command line that the
locale cannot read is refused (`PYTHONUTF8=1` helps). So is a file of yours, such as `torch.py`,
that Python would import in place of a package.

This page is made from the code by `python -m opd_ray.cli.reference`.
"""


def to_markdown() -> str:
    """The page."""
    # The width that argparse breaks lines at.
    with mock.patch.dict(os.environ, {"COLUMNS": str(_WIDTH)}):
        parts = [
            f"\n## opd-ray {name}\n\n```text\n{command.format_help().rstrip()}\n```\n"
            for name, command in commands()
        ]
    return _HEAD + "".join(parts)


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command by its name; those of a command of several as ``deepplanning score``."""
    yield from _below(make_parser(), "")


def _below(
    parser: argparse.ArgumentParser, prefix: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                inner = list(_below(command, f"{prefix}{name} "))
                yield from inner or [(prefix + name, command)]


if __name__ == "__main__":
    print(to_markdown(), end="")
