"""``opd-ray eval``: a model's accuracy on a config's tasks, with rollout actors alone."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from opd_ray.config.check import check_config
from opd_ray.config.schema import Config
from opd_ray.crew import Crew
from opd_ray.errors import ConfigError
from opd_ray.evaluation.evaluator import accuracy
from opd_ray.judge import Writer
from opd_ray.placement import plan_placement
from opd_ray.prompts import held_out_tasks
from opd_ray.ray_session import RaySession


def evaluate(config: Config, out: Path | None = None) -> int:
    """Evaluate ``student.path`` on ``eval.tasks``; prints a table, writes JSON where asked.

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why it could not go on.
    """
    check_config(config)
    if not config.eval.tasks:
        raise ConfigError("eval.tasks is empty: name at least one task to evaluate on")
    tokenizer = AutoTokenizer.from_pretrained(
        config.student.path, trust_remote_code=config.student.trust_remote_code
    )
    tasks = held_out_tasks(config, tokenizer)
    values: dict[str, float] = {}
    with RaySession(config.cluster) as session:
        placement = plan_placement(config, session.cluster())
        settled = placement.settle(config)
        with Crew(settled, placement, vocab_size=len(tokenizer), roles=("rollout",)) as crew:
            crew.ready()
            writer = Writer(crew.fleet, crew.rollout_pool())
            for task in tasks:
                values |= accuracy(
                    writer, task, tokenizer, config.rollout.max_new_tokens, config.run.seed
                )
    table = Table(title=f"{config.student.path}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in values.items():
        table.add_row(name.removeprefix("eval/"), f"{value:.4f}")
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 0
