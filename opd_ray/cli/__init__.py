"""The command line: ``opd-ray train | demo | study | eval | export | doctor | ...``.

Nothing heavy is imported before a command needs it: help and --print-config answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from opd_ray import __version__
from opd_ray.cli import (
    check_environment,
    check_rule,
    check_teacher,
    deepplanning,
    doctor,
    eval,
    export,
    pairs,
    prepare,
    report,
    serve_teacher,
    status,
    study,
    train,
)
from opd_ray.cli.surroundings import (
    check_arguments,
    check_packages,
    find_own_modules,
    print_in_any_encoding,
    reader_left,
)
from opd_ray.errors import READER_LEFT, exit_code, is_known
from opd_ray.signals import stop_as_interrupt

TRACEBACK_VARIABLE = "OPD_RAY_TRACEBACK"
EXAMPLES = """examples:
  opd-ray demo                                       a student learns from a teacher, anywhere
  opd-ray doctor --config demo                       check everything, plan placement
  opd-ray train --config demo run.steps=50 tip.rho=0.2
  opd-ray train --config my_run.yaml --print-config  the resolved configuration, without running
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0 success, 1 a run that failed, 2 bad input, 130 Ctrl-C, SIGTERM or SIGHUP, 141 nobody reads the
    output any more. Known errors print their message alone, the whole traceback with
    ``--traceback`` or OPD_RAY_TRACEBACK=1; unknown ones always do.
    """
    print_in_any_encoding()
    parser = make_parser()
    args, more = parser.parse_known_args(argv)
    args.overrides = [*getattr(args, "overrides", []), *more]
    stray = [text for text in args.overrides if text.startswith("-")]
    if stray or (more and not args.takes_overrides):
        parser.error(f"unrecognized arguments: {' '.join(stray or more)}")
    try:
        check_arguments(args.overrides)
        check_packages()
        find_own_modules()
        with stop_as_interrupt():
            code = args.run(args)
        reader_left()  # else Python complains when it ends
        return code
    except KeyboardInterrupt as error:
        print("opd-ray: stopped by Ctrl-C or a signal", file=sys.stderr)
        return exit_code(error)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            return READER_LEFT
        shown = args.traceback or os.environ.get(TRACEBACK_VARIABLE, "0") != "0"
        if shown or not is_known(error):
            traceback.print_exc()
        else:
            print(f"opd-ray: {error}", file=sys.stderr)
        return exit_code(error)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, a function from arguments to an exit code."""
    parser = argparse.ArgumentParser(
        prog="opd-ray",
        description="Distributed on-policy distillation with token selection.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"opd-ray {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        train,
        status,
        study,
        eval,
        export,
        report,
        prepare,
        deepplanning,
        doctor,
        check_teacher,
        check_environment,
        check_rule,
        serve_teacher,
        pairs,
    ):
        module.add_commands(commands)
    return parser
