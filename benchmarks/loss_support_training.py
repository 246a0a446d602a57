"""What a student learns under each loss.support; writes results/loss_support_training.md.

    python benchmarks/loss_support_training.py gsm8k_train.jsonl [--steps 14] [--seeds 0 1 2]
        [--output outputs/loss_support_training]

The SmolLM2 pair (`opd-ray fetch-smollm2`) of `smollm2_gsm8k`, with reverse KL as the TIP paper has
it, from k = K = 16 tokens of the teacher, the student or both, and from hidden states (exact). Arms
of one seed have the same prompts and sampling seeds and begin with the same weights. All of them
are measured alike and exactly before the first step and after the last one: held-out prompts go to
a second process of the teacher, which gives hidden states.

Seed by seed; the same command goes on where it was stopped, with the cell at work anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from page import publish

from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.session import open_session
from opd_ray.data.prompts import PromptFeed, held_out_tasks
from opd_ray.evaluation.evaluator import Evaluator
from opd_ray.output.checkpoint import RunState
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import JsonlSink, Metrics
from opd_ray.preflight.models import check_models
from opd_ray.preflight.prompts import check_routing
from opd_ray.study.report import t_interval
from opd_ray.tip import TipFilter
from opd_ray.whole_file import write_whole

RESULTS = Path(__file__).parent / "results" / "loss_support_training.md"
HELD_OUT = 32  # prompts
ARMS = {
    "teacher": "{signal: topk, topk: 16}",
    "student": "{signal: topk, topk: 16}",
    "union": "{signal: topk, topk: 16}",
    "hidden": "{signal: hidden}",
}
FIGURES = ("eval/reverse_kl", "eval/kl", "eval/top1", "eval/entropy")
CONFIG = """inherit: smollm2_gsm8k
run: {{output_dir: {folder}, seed: {seed}, steps: {steps}}}
teacher: {teacher}
teachers: {{exact: {{signal: hidden}}}}
routes: {{train.jsonl: teacher, held_out.jsonl: exact}}
data: {{kind: jsonl, path: {folder}/train.jsonl}}
rollout: {{max_new_tokens: 64, record_topk: 16, max_num_seqs: 32}}
loss: {{divergence: reverse_kl, support: {support}}}
trainer: {{warmup_steps: 2}}
eval:
  every: 0
  kl_prompts: {held_out}
  tasks:
    - name: gsm8k
      task: math
      problems: {held_out}
      data: {{kind: jsonl, path: {folder}/held_out.jsonl, max_prompt_tokens: 384}}
"""

INTRO = """# What a student learns under each loss.support

Made by `python benchmarks/loss_support_training.py gsm8k_train.jsonl {options}`.
SmolLM2 pair, {steps} steps of 8 prompts with responses of up to 64 tokens, soft_or at rho 0.5,
reverse KL from k = K = 16 tokens or from hidden states; bfloat16 in all engines.
Held out: exact figures on responses to {held_out} other prompts, sampled at temperature 1. Mean of
{seeds} seeds ± half a 95 % t-interval; `− hidden`, `− teacher`: of KL(student ‖ teacher) less that
of the other arm at the same seed.
"""


def main() -> None:
    """Run the cells that are not finished, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="GSM8K problems: JSONL with prompt and answer")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--output", type=Path, default=Path("outputs/loss_support_training"))
    arguments = parser.parse_args()
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    split(arguments.data, folder)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if not cell_file(folder, arm, seed).is_file():
                run_cell(folder, arm, seed, arguments.steps)
    text = table(folder, arguments.arms, arguments.seeds, arguments.steps)
    publish(text, RESULTS)


def split(data: Path, folder: Path) -> None:
    """The last problems are held out."""
    # Not splitlines(): a problem may hold one of Unicode's other line separators.
    lines = [line for line in data.read_text(encoding="utf-8").split("\n") if line]
    for name, part in (("train", lines[:-HELD_OUT]), ("held_out", lines[-HELD_OUT:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")


def cell_file(folder: Path, arm: str, seed: int) -> Path:
    """Where a finished cell's figures stand."""
    return folder / f"{arm}_{seed}.json"


def configuration(folder: Path, arm: str, seed: int, steps: int) -> Config:
    """Of a cell. Teachers with signals of two kinds do no harm here, as no step has both."""
    path = folder / f"{arm}.yaml"
    support = "null" if arm == "hidden" else arm
    path.write_text(
        CONFIG.format(
            folder=folder,
            seed=seed,
            steps=steps,
            teacher=ARMS[arm],
            support=support,
            held_out=HELD_OUT,
        ),
        encoding="utf-8",
    )
    return load_config(str(path))


def run_cell(folder: Path, arm: str, seed: int, steps: int) -> None:
    """One run with actors of its own; its figures are written when it is done."""
    config = configuration(folder, arm, seed, steps)
    pairing = check_models(config)
    tokenizer = pairing.tokenizer
    prompts, tasks = PromptFeed.load(config, tokenizer), held_out_tasks(config, tokenizer)
    longest = check_routing(config, prompts, tasks, pairing.teacher_contexts)
    with open_session(config, pairing, 0, longest) as session:
        evaluator = Evaluator(
            session.config, tasks, tokenizer, session.scorer, session.teachers, session.trainers
        )
        evaluator.tasks = ()  # no accuracy: a model of this size does not solve them
        measured = Measured(evaluator, folder / f"start_{seed}.json")
        progress = Progress(steps, 0)
        progress.say(f"{arm}, seed {seed}")
        metrics = Metrics([JsonlSink(folder / f"{arm}_{seed}.jsonl", resume_step=-1)])
        coordinator = Coordinator(
            session.config,
            session,
            prompts,
            TipFilter(config.tip, loss_score=config.loss.divergence.value),
            measured,
            NoCheckpoints(),
            metrics,
            progress,
        )
        with closing(metrics), closing(progress):
            coordinator.run(0)
    write_whole(cell_file(folder, arm, seed), json.dumps(measured.last, indent=1))


@dataclass
class Measured:
    """Evaluates, of each seed the start once for all arms; keeps the last figures."""

    evaluator: Evaluator
    start: Path
    calls: int = 0

    def run(self) -> dict[str, float]:
        self.calls += 1
        if self.calls > 1:
            self.last = self.evaluator.run()
        elif self.start.is_file():
            self.last = json.loads(self.start.read_text(encoding="utf-8"))
        else:
            self.last = self.evaluator.run()
            write_whole(self.start, json.dumps(self.last, indent=1))
        return self.last


class NoCheckpoints:
    """A cell that is cut short begins anew."""

    def begin(self, state: RunState) -> None:
        """Keep none."""


def table(folder: Path, arms: list[str], seeds: list[int], steps: int) -> str:
    """Mean and half a 95 % t-interval over the seeds of every figure, by arm."""
    options = f"--steps {steps} --seeds {' '.join(map(str, seeds))}"
    intro = INTRO.format(options=options, steps=steps, held_out=HELD_OUT, seeds=len(seeds))
    lines = [
        intro,
        "| loss | bytes a token | KL(student ‖ teacher) | KL(teacher ‖ student) "
        "| same likeliest token | student's entropy, nats | − hidden | − teacher |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    start = np.array([figures(folder / f"start_{seed}.json") for seed in seeds])
    lines.append(row("before", "", start, {}))
    found = {
        arm: np.array([figures(cell_file(folder, arm, seed)) for seed in seeds]) for arm in arms
    }
    for arm in arms:
        metrics = (folder / f"{arm}_{seeds[0]}.jsonl").read_text(encoding="utf-8").splitlines()
        steps_only = [r for r in map(json.loads, metrics) if "train/loss" in r]
        nbytes = steps_only[-1]["teacher/signal_bytes_per_trained_token"]
        lines.append(row(arm, f"{nbytes:.0f}", found[arm], found))
    return "\n".join([*lines, ""])


def row(name: str, nbytes: str, values: np.ndarray, found: Mapping[str, np.ndarray]) -> str:
    """A line of the table; ``values`` [seeds, figures], and those of all arms."""
    cells = [name, nbytes, *(interval(column) for column in values.T)]
    for other in ("hidden", "teacher"):
        paired = other in found and found[other] is not values
        cells.append(interval((values - found[other])[:, 0]) if paired else "")
    return f"| {' | '.join(cells)} |"


def interval(values: np.ndarray) -> str:
    """Mean ± half a 95 % t-interval; of one value itself."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    found = t_interval(values.tolist())
    return f"{found.mean:.4f} ± {found.half_width:.4f}"


def figures(path: Path) -> list[float]:
    """Of a finished cell, or of a seed's start."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [found[name] for name in FIGURES]


if __name__ == "__main__":
    main()
