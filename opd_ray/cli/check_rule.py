"""``opd-ray check-rule``: is a selection rule fit for a run?"""

from __future__ import annotations

import argparse

from opd_ray.cli.checks import config_of_check, tell
from opd_ray.cli.command import Commands, add_command, add_config_arguments
from opd_ray.errors import ConfigError


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "check-rule",
        run,
        summary="try a selection rule on random scores and name what a run would trip over",
        examples="""  opd-ray check-rule soft_or
  PYTHONPATH=examples/custom_rule opd-ray check-rule surprise:surprise
  opd-ray check-rule my_rules:mine tip.selection=soft tip.divergence=jsd
""",
    )
    parser.add_argument("rule", metavar="RULE", help="a rule's name, or package.module:object")
    add_config_arguments(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Print what the rule needs and the violations; 0 only if there is none."""
    overrides = [*args.overrides, f"tip.rule={args.rule}"]
    config = config_of_check(args.config, overrides, "check-rule")
    from opd_ray.preflight.contract.rule import check_rule

    try:
        report = check_rule(config.tip)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"tip.rule = {args.rule!r}: {error}") from error
    print(f"rule {args.rule} keeps {report.rule.keeps}; it needs")
    print("\n".join(f"  {need}" for need in report.needs or ["no score"]))
    for note in report.notes:
        print(f"note: {note}")
    if code := tell(report.violations, "what a run expects of a rule"):
        return code
    print(f"the rule {args.rule} can be used")
    return 0
