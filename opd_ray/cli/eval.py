"""``opd-ray eval``: benchmarks by name, or the evaluation tasks of a configuration."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from opd_ray.api import default_folder
from opd_ray.cli.command import (
    Commands,
    add_command,
    add_config_arguments,
    path,
    path_text,
)
from opd_ray.config.load import config_from, load_config
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError
from opd_ray.evaluation import presets
from opd_ray.importing import importing
from opd_ray.output.meant import meant_model


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

Stopped, it goes on when the same command is given again.
tasks: sets that `opd-ray prepare` has written: math500, aime24, aime25, amc23, gsm8k, ...
""",
    )
    add_config_arguments(parser, required=False)
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--model",
        type=path_text,
        metavar="FOLDER",
        help="the model to evaluate, or a run's folder: its export (default: the config's student)",
    )
    parser.add_argument(
        "--tasks", metavar="NAMES", help="prepared sets, with commas (default: the config's tasks)"
    )
    parser.add_argument(
        "--data",
        type=path_text,
        metavar="FOLDER",
        help="where prepared sets lie (default: OPD_RAY_DATA, or ./data)",
    )
    parser.add_argument("--problems", **number, help="only the first N problems of every task")
    parser.add_argument(
        "--out",
        type=path,
        metavar="FOLDER",
        help="keep responses and results there, and go on where it stands "
        "(default: outputs/eval/MODEL, by the last part of the model's name)",
    )
    asking = parser.add_argument_group(
        "how problems are asked",
        "(default: 16 samples, T = 1; tasks of a config: as it says)",
    )
    asking.add_argument("--greedy", action="store_true", help="once, at temperature 0")
    asking.add_argument("--samples", **number, help="N sampled responses")
    asking.add_argument("--temperature", type=float, help="of the samples (default 1.0)")
    asking.add_argument("--top-p", type=float, help="nucleus mass of the samples (default 1.0)")
    asking.add_argument(
        "--max-new-tokens",
        **number,
        help="longest response, tokens (default 8192, or what fits into the model's context; with "
        "--config as it says)",
    )
    engines = parser.add_argument_group("engines")
    engines.add_argument("--actors", **number, help="rollout actors (default 1)")
    engines.add_argument(
        "--gpus-per-actor",
        **number,
        help="GPUs over which each actor's engine is split (default 0: CPU)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate; see opd_ray.evaluation.run."""
    config = evaluation_config(args)
    with importing():
        from opd_ray.evaluation.run import evaluate

    return evaluate(config, args.out or default_folder(args.model or config.student.path))


def evaluation_config(args: argparse.Namespace) -> Config:
    """The configuration that the arguments describe.

    Raises:
        ConfigError: arguments that do not go together, or bad keys.
    """
    overrides = list(args.overrides)
    model = args.model
    if model is not None and (model := meant_model(model)) != args.model:
        print(f"--model {args.model}: a run's folder; taking {model}", file=sys.stderr)
    if args.actors is not None:
        overrides.append(f"rollout.actors={args.actors}")
    if args.gpus_per_actor is not None:
        overrides.append(f"rollout.gpus_per_actor={args.gpus_per_actor}")
        overrides.append(f"rollout.tensor_parallel_size={max(1, args.gpus_per_actor)}")
    if args.config is not None:
        config = load_config(args.config, overrides)
        if model is not None:
            config = replace(config, student=replace(config.student, path=model))
    elif model is None or args.tasks is None:
        raise ConfigError("eval: give --model and --tasks, or --config")
    else:
        values = presets.base_values(model, args.max_new_tokens)
        config = config_from(values, overrides, "command line")
        _check_lengths(config, args.max_new_tokens)
    asking = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_new_tokens": args.max_new_tokens,
        "problems": args.problems,
    }
    if args.greedy or args.samples is not None:
        asking |= {"greedy": args.greedy, "samples": args.samples or 0}
    chosen = {name: value for name, value in asking.items() if value is not None}
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
    drawn = args.temperature is not None or args.top_p is not None
    if drawn and not any(task.samples for task in tasks):
        raise ConfigError(
            "eval: --temperature and --top-p are of samples, and none are asked for: "
            "give --samples too"
        )
    return replace(config, eval=replace(config.eval, tasks=tasks))


def _check_lengths(config: Config, asked: int | None) -> None:
    """Say how far the model's context shortens responses, or refuse those that were asked for.

    Raises:
        ConfigError: ``asked``, the value of --max-new-tokens, leaves too little room for prompts.
    """
    context, prompt = config.student.context_length, config.data.max_prompt_tokens
    if asked is not None and prompt + asked > context:
        raise ConfigError(
            f"--max-new-tokens {asked}: with prompts of up to {prompt} tokens more than the "
            f"{context} of the context of {config.student.path}; use at most {context - prompt}, "
            "or a lower data.max_prompt_tokens"
        )
    if asked is None and config.rollout.max_new_tokens < presets.MAX_NEW_TOKENS:
        print(
            f"prompts of up to {prompt:,} tokens, responses of up to "
            f"{config.rollout.max_new_tokens:,}; the context has {context:,}",
            file=sys.stderr,
        )
