"""What does a student trained as an adapter cost and learn beside one trained whole?

    python benchmarks/lora.py                         # demo pair, three seeds; about 40 minutes
    python benchmarks/lora.py --steps 10 --seeds 0    # a first look; prints only
    python benchmarks/lora.py --config smollm2_gsm8k --ways full "LoRA 16" -- eval.kl_prompts=16

Runs of one config, the ways in turns within each seed, so that a machine that becomes busy is so
for all. Held-out KL is that of `eval.kl_prompts` after the last step, memory the peak of each
process, seconds medians over all steps but the first, and bytes of a sync those of the tensors that
a push sends. With --out the table is written there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from page import publish
from safetensors import safe_open
from whole_run import figures_of, run, steps_of

SETTINGS = {
    "run.resume": "never",
    "run.checkpoint_every": 0,
    "run.export_at_end": "true",
    "eval.every": 0,
    "eval.teacher_accuracy": "false",
}
STAGES = ("step", "rollout_and_teacher", "train", "sync")
PROCESSES = {
    "trainer": "memory/trainer-0_bytes",
    "rollout": "memory/rollout-0_bytes",
    "teacher": "memory/teacher-0_bytes",
}
# Rates for adapters are higher, as half of each begins at zero; chosen on a seed of its own.
WAYS: dict[str, tuple[str, ...]] = {
    "full": (),
    "LoRA 16": ("student.lora.rank=16", "student.lora.alpha=32"),
    "LoRA 64": ("student.lora.rank=64", "student.lora.alpha=128"),
    "LoRA 16, merged": ("student.lora.rank=16", "student.lora.alpha=32", "sync.lora=merged"),
}


def figures(folder: Path) -> dict[str, float]:
    """What a run's metrics say of it."""
    rows, steps = figures_of(folder), steps_of(folder)
    evaluations = [row for row in rows if "eval/kl" in row]
    found = {name: statistics.median(row[f"seconds/{name}"] for row in steps) for name in STAGES}
    for name, key in PROCESSES.items():
        found[name] = max(row.get(key, 0) for row in rows) / 2**20
    found["before"], found["kl"] = evaluations[0]["eval/kl"], evaluations[-1]["eval/kl"]
    found["gap"] = max(row.get("sync/gap_mean", 0.0) for row in rows)
    return found


def sent_bytes(folder: Path) -> int:
    """Bytes of the tensors of a push: of the exported adapter, or of all weights of the model."""
    export = folder / "export"
    adapter = export / "adapter_model.safetensors"
    total = 0
    for file in [adapter] if adapter.is_file() else sorted(export.glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        total += sum(tensor.nbytes for tensor in tensors.values())
        # A tied head is sent under both of its names.
        if not adapter.is_file() and "lm_head.weight" not in tensors:
            total += sum(t.nbytes for name, t in tensors.items() if "embed_tokens" in name)
    return total


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """E.g. "0.12 (0.11 to 0.13)"."""
    low, high = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Lines of Markdown, a way a line: means over the seeds, and medians of seconds."""
    head = (
        ["", "held-out KL before", "held-out KL after"]
        + [f"{name}, s" for name in STAGES]
        + [f"{name}, MiB" for name in PROCESSES]
        + ["sync, kB", "largest gap"]
    )
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for way, runs in found.items():
        cells = [
            way,
            f"{statistics.mean(one['before'] for one in runs):.4f}",
            mean_and_range([one["kl"] for one in runs], 4),
            *(f"{statistics.median(one[name] for one in runs):.3f}" for name in STAGES),
            *(f"{statistics.mean(one[name] for one in runs):.0f}" for name in PROCESSES),
            f"{runs[0]['sent'] / 1e3:,.0f}",
            f"{max(one['gap'] for one in runs):.1e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="demo")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rate", type=float, help="learning rate of adapters; default: the config's"
    )
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    arguments = parser.parse_args(argv)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.ways}
    with tempfile.TemporaryDirectory() as base:
        for seed in arguments.seeds:
            for number, way in enumerate(arguments.ways):
                folder = Path(base, f"{number}-{seed}")
                overrides = list(WAYS[way])
                if overrides and arguments.rate is not None:
                    overrides.append(f"trainer.learning_rate={arguments.rate}")
                if overrides and "sync.lora=merged" not in overrides:
                    overrides.append("student.lora.export=adapter")
                settings = {"run.steps": arguments.steps, "run.seed": seed}
                command = ["train", "--config", arguments.config]
                last = [*overrides, *arguments.overrides]
                run(folder, command, SETTINGS | settings, last)
                one = figures(folder)
                one["sent"] = sent_bytes(folder)
                found[way].append(one)
                print(f"{way}, seed {seed}: {one}", file=sys.stderr)
    rate = "" if arguments.rate is None else f" --rate {arguments.rate:g}"
    more = f" -- {' '.join(arguments.overrides)}" if arguments.overrides else ""
    text = "\n".join(
        [
            "# LoRA beside whole training",
            "",
            f"`python benchmarks/lora.py --config {arguments.config} --steps {arguments.steps} "
            f"--seeds {' '.join(map(str, arguments.seeds))}{rate}{more}` on {os.cpu_count()} "
            "cores: mean over the seeds, with the least and the greatest KL; seconds are medians "
            "over all steps but the first, memory the peak of a process.",
            "",
            *table(found),
            "",
        ]
    )
    publish(text, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
