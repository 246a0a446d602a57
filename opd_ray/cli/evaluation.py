"""``opd-ray eval``: benchmarks by name, or the evaluation tasks of a configuration."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from opd_ray.cli.command import Commands, add_command, add_config_arguments
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError


def add_commands(commands: Commands) -> None:
    """Declare what this file offers."""
    parser = add_command(
        commands,
        "eval",
        run,
        summary="evaluate a model on benchmarks, or on a config's eval tasks, without training",
        examples="""  opd-ray eval --model FOLDER --tasks math500,aime24 --samples 16 --out mine
  opd-ray eval --model FOLDER --tasks gsm8k --greedy --actors 4 rollout.max_num_seqs=256
  opd-ray eval --config my_run.yaml --model FOLDER --tasks amc23
  opd-ray eval --config demo --model outputs/demo/export

Stopped, it goes on when the same command is given again with the same --out.
tasks: sets that `opd-ray prepare` has written: math500, aime24, aime25, amc23, gsm8k, ...
""",
    )
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--model", metavar="FOLDER", help="the model to evaluate (default: the config's student)"
    )
    parser.add_argument(
        "--tasks", metavar="NAMES", help="prepared sets, with commas (default: the config's tasks)"
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="where prepared sets lie (default: OPD_RAY_DATA, or ./data)",
    )
    parser.add_argument(
        "--problems", type=int, metavar="N", help="only the first N problems of every task"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="keep responses and results there, and go on where it stands",
    )
    asking = parser.add_argument_group("how problems are asked (default: 16 samples, T = 1)")
    asking.add_argument("--greedy", action="store_true", help="once, at temperature 0")
    asking.add_argument("--samples", type=int, metavar="N", help="N sampled responses")
    asking.add_argument("--temperature", type=float, help="of the samples (default 1.0)")
    asking.add_argument("--top-p", type=float, help="nucleus mass of the samples (default 1.0)")
    asking.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest response, tokens (default 8192)"
    )
    engines = parser.add_argument_group("engines")
    engines.add_argument("--actors", type=int, metavar="N", help="rollout actors (default 1)")
    engines.add_argument(
        "--gpus-per-actor",
        type=int,
        metavar="N",
        help="GPUs over which each actor's engine is split (default 0: CPU)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate; see opd_ray.evaluate."""
    config = evaluation_config(args)
    from opd_ray.evaluate import evaluate

    return evaluate(config, args.out)


def evaluation_config(args: argparse.Namespace) -> Config:
    """The configuration that the arguments describe.

    Raises:
        ConfigError: arguments that do not go together, or bad keys.
    """
    from opd_ray.config.load import config_from, load_config
    from opd_ray.evaluation import presets

    overrides = list(args.overrides)
    if args.actors is not None:
        overrides.append(f"rollout.actors={args.actors}")
    if args.gpus_per_actor is not None:
        overrides.append(f"rollout.gpus_per_actor={args.gpus_per_actor}")
        overrides.append(f"rollout.tensor_parallel_size={max(1, args.gpus_per_actor)}")
    if args.config is not None:
        config = load_config(args.config, overrides)
        if args.model is not None:
            config = replace(config, student=replace(config.student, path=args.model))
    elif args.model is None or args.tasks is None:
        raise ConfigError("eval: give --model and --tasks, or --config")
    else:
        longest = args.max_new_tokens or presets.MAX_NEW_TOKENS
        values = presets.base_values(args.model, longest)
        config = config_from(values, overrides, "command line")
    asking = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_new_tokens": args.max_new_tokens,
        "problems": args.problems,
    }
    if args.greedy or args.samples is not None:
        asking |= {"greedy": args.greedy, "samples": args.samples or 0}
    chosen = presets.given(asking)
    if args.tasks is None:
        if args.data is not None:
            raise ConfigError("eval: --data says where the sets of --tasks lie; name some")
        tasks = [replace(task, **chosen) for task in config.eval.tasks]
    else:
        sampled = {
            "greedy": False,
            "samples": presets.SAMPLES,
            "temperature": presets.TEMPERATURE,
            "top_p": presets.TOP_P,
        }
        names = [name.strip() for name in args.tasks.split(",") if name.strip()]
        tasks = presets.named_tasks(names, config.data, args.data, **sampled | chosen)
    return replace(config, eval=replace(config.eval, tasks=tasks))
