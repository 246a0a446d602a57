"""What does run.deterministic cost, and do two runs end with the same bits?

    python benchmarks/deterministic.py                      # two runs of each, in turns; 8 minutes
    python benchmarks/deterministic.py --steps 5 --runs 2   # a first look; prints only

Runs of the demo's pair, with the actors as below, in turns: plain, deterministic, plain, ... so
that a machine that becomes busy is so for both. Beside the seconds of a step it says whether the
weights at the end are the same, and by how much they differ if they are not. With --out the table
is written there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from page import publish
from safetensors.torch import load_file
from whole_run import run, steps_of

STAGES = ("step", "rollout_and_teacher", "filter", "train", "sync")
SETTINGS = {
    "run.resume": "never",
    "run.checkpoint_every": 0,
    "run.seed": 0,
    "trainer.warmup_steps": 0,
    "eval.every": 0,
    "eval.tasks": "[]",
    "eval.kl_prompts": 0,
    "eval.teacher_accuracy": "false",
}
MODES = {"plain": "false", "deterministic": "true"}


def stage_seconds(folder: Path) -> dict[str, list[float]]:
    """Seconds of every stage by step, see steps_of."""
    return {name: [row[f"seconds/{name}"] for row in steps_of(folder)] for name in STAGES}


def farthest_apart(folders: Sequence[Path]) -> float:
    """The largest difference of a weight between any two runs; 0: all bits are the same."""
    weights = [load_file(folder / "export" / "model.safetensors") for folder in folders]
    return max(
        float((one[name].float() - other[name].float()).abs().max())
        for one, other in combinations(weights, 2)
        for name in one
    )


def table(seconds: dict[str, dict[str, list[float]]], apart: dict[str, float]) -> list[str]:
    """Lines of Markdown: medians over all steps of a mode, and how far its runs end apart."""
    medians = {
        mode: {name: statistics.median(values) for name, values in stages.items()}
        for mode, stages in seconds.items()
    }
    head = ["| | " + " | ".join(f"{name}, s" for name in STAGES) + " | weights apart |"]
    head.append("|---|" + "---:|" * (len(STAGES) + 1))
    rows = [
        f"| {mode} | "
        + " | ".join(f"{found[name]:.3f}" for name in STAGES)
        + f" | {'same bits' if apart[mode] == 0 else f'{apart[mode]:.1e}'} |"
        for mode, found in medians.items()
    ]
    ratios = [medians["deterministic"][name] / medians["plain"][name] for name in STAGES]
    return [*head, *rows, "| ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " | |"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--runs", type=int, default=2, help="of each mode; 2 or more")
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=["rollout.actors=2", "teacher.replicas=2"],
        help="of the demo's configuration, in place of rollout.actors=2 teacher.replicas=2",
    )
    arguments = parser.parse_args(argv)
    seconds: dict[str, dict[str, list[float]]] = {m: {n: [] for n in STAGES} for m in MODES}
    with tempfile.TemporaryDirectory() as base:
        folders: dict[str, list[Path]] = {mode: [] for mode in MODES}
        for number in range(arguments.runs):
            for mode, value in MODES.items():
                folder = Path(base, f"{mode}-{number}")
                settings = {"run.steps": arguments.steps, "run.deterministic": value}
                run(folder, ["demo"], SETTINGS | settings, arguments.overrides)
                folders[mode].append(folder)
                for name, values in stage_seconds(folder).items():
                    seconds[mode][name] += values
                print(f"{mode}, run {number + 1}: done", file=sys.stderr)
        apart = {mode: farthest_apart(found) for mode, found in folders.items()}
    text = "\n".join(
        [
            "# What run.deterministic costs",
            "",
            f"`python benchmarks/deterministic.py --steps {arguments.steps} --runs "
            f"{arguments.runs} {' '.join(arguments.overrides)}` on {os.cpu_count()} cores: the "
            f"demo, {arguments.runs} runs of each kind in turns, medians over all steps but the "
            "first of each.",
            "",
            *table(seconds, apart),
            "",
        ]
    )
    publish(text, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
