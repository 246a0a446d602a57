"""``opd-ray check-environment``: is an environment fit for a run?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.cli.checks import config_of_check, tell
from opd_ray.cli.command import Commands, add_command, add_config_arguments, path
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError

_NO_PROMPT = [{"role": "user", "content": "Begin."}]


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "check-environment",
        run,
        summary="play rollouts on an environment without a student, and name what a run would trip"
        " over",
        examples="""  opd-ray check-environment --path my_module:MyEnvironment
  opd-ray check-environment --path my_module:MyEnvironment --row '{"level": 3}' \\
      environment.arguments='{size: 4}' environment.call_timeout_s=5
  opd-ray check-environment --config my_run.yaml   (with its data, and its student's template)
  opd-ray check-environment --config my_run.yaml --source hard.jsonl --rows some_rows.jsonl
""",
    )
    parser.add_argument(
        "--path", metavar="MODULE:CLASS", help="of its class or function; else the config's"
    )
    parser.add_argument("--source", default="", help="whose environment of the config is checked")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--row", metavar="JSON", help="columns of a row to reset it to")
    given.add_argument(
        "--rows",
        metavar="FILE",
        type=path,
        help="a JSONL file; the first two rows are used (else those of the config's data)",
    )
    parser.add_argument("--parser", help="of tool calls, as in environment.parser")
    add_config_arguments(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Print tools, what a student reads, and the violations; 0 only if there is none."""
    config = _config(args)
    from opd_ray.preflight.environments import environment_problems, section_problems

    if problems := section_problems(config) or list(environment_problems(config)):
        raise ConfigError("\n".join(problems))
    key, settings = config.environment_set.of(args.source)
    if settings.path is None:
        raise ConfigError(
            f"{key}.path = null: give --path MODULE:CLASS, or a --config that names an environment"
        )
    from opd_ray.data.chat_template import template_options
    from opd_ray.environments.turns import TurnTemplate
    from opd_ray.models.tokenizer import describe_model
    from opd_ray.preflight.contract.environment import check_environment
    from opd_ray.preflight.contract.rows_of_data import rows_of_data

    rows: Sequence[Mapping[str, Any]] = _rows(args)
    template, student = None, config.student
    if args.config:
        facts = describe_model(student.path, trust_remote_code=student.trust_remote_code)
        tokenizer, data = facts.tokenizer, config.data
        rows = rows or rows_of_data(config, args.source, tokenizer)
        options = template_options(tokenizer, data, config.run.day) if facts.chat_template else {}
        template = TurnTemplate(tokenizer, (), options, facts.eos_ids)
    report = check_environment(settings, key, rows or [{"prompt": _NO_PROMPT}], template)
    print(f"environment {settings.path}; its tools are")
    print("\n".join(f"  {tool}" for tool in report.tools or ["none"]))
    if report.read:
        print("calls, and what a student reads:")
        print("\n".join(f"  {line}" for line in report.read))
    for note in report.notes:
        print(f"note: {note}")
    if code := tell(report.violations, "what a run expects of an environment"):
        return code
    print(f"the environment {settings.path} can be used")
    return 0


def _config(args: argparse.Namespace) -> Config:
    if args.source and (args.path or not args.config):
        raise ConfigError(f"--source {args.source}: it names an environment of a --config")
    overrides = list(args.overrides)
    overrides += [f"environment.path={args.path}"] if args.path else []
    overrides += [f"environment.parser={args.parser}"] if args.parser else []
    return config_of_check(args.config, overrides, "check-environment")


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows given on the command line."""
    if args.row is not None:
        return [_row(args.row, f"--row {args.row!r}")]
    if args.rows is None:
        return []
    file: Path = args.rows
    with border(f"--rows {file}", "give a readable file of UTF-8 text", ConfigError):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    found = [
        _row(line, f"--rows {file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ][:2]
    if not found:
        raise ConfigError(f"--rows {file} is empty: give at least one row")
    return found


def _row(text: str, place: str) -> dict[str, Any]:
    with border(place, "give one JSON object", ConfigError):
        row = json.loads(text)
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: give one JSON object with the columns of a row")
    prompt = row.get("prompt", _NO_PROMPT)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = isinstance(prompt, list) and all(
        isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt
    )
    if not messages or not prompt:
        raise ConfigError(f"{place}: prompt must be text, or a list of chat messages")
    return {**row, "prompt": prompt}
