"""What choosing tokens saves of a trainer's memory, and what the loss saves without it.

    python benchmarks/peak_memory.py [--device cpu|cuda] [--pairs NAME ...] [--out FILE]

Forward and backward of trunk, head and loss over one text of the paper's longest lengths, for
rho = 1, 0.5, 0.2 and 0.1 and four losses that give the same gradient (head_losses.py):

- `full logits`: whole logits of both models, autograd;
- `chunks kept`: 1,024 rows at a time, all of whose saved tensors live until the backward pass: the
  kind of loss that the published saving is measured against;
- `chunks recomputed`: the same chunks, each computed again in the backward pass;
- `fused`: the product's own.

The first two tables are for the paper's three pairs in their real shapes. Nothing is computed
there: tensors without contents are counted (counted_tensors.py), in chunks as large as on GPUs.
What a rank holds all the time is added by a formula. The last table is measured: on a GPU by the
allocator, in the real shapes where they fit; on a CPU by the resident set, with fewer layers, rows
and tokens of the vocabulary; beside what the counter finds in the same steps. Needs Linux (/proc,
glibc) for the CPU. Writes results/peak_memory.md.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from head_losses import CHUNK_ROWS, LOSSES
from memory_step import StudentStep, Text, meter_of
from page import publish
from transformers import logging

from opd_ray.models.shape import ModelShape, known_config

RESULTS = Path(__file__).parent / "results" / "peak_memory.md"
RHOS = (1.0, 0.5, 0.2, 0.1)
KEPT, FUSED = "chunks kept", "fused"
GB = 1e9

LONGEST = Text(prompt=2048, response=8192)
RANKS = 4  # of trainers in the recipes on eight GPUs, with ZeRO stage 3
# Weights in bfloat16; gradients, master copy and AdamW's two moments in float32.
HELD_BYTES = 2 + 4 + 4 + 8
# Of the measured steps on a CPU.
FEW_LAYERS, SHORT, VOCABULARY_SHARE = 2, Text(prompt=64, response=2048), 4


@dataclass(frozen=True)
class Pair:
    """A student and its teacher in the paper."""

    name: str
    student: str
    teacher: str

    @property
    def described(self) -> dict[str, Any]:
        return _described(self.student)

    @property
    def teacher_hidden(self) -> int:
        return _described(self.teacher)["hidden_size"]

    def held(self) -> int:
        """Bytes that a rank holds between steps: of the student, and the teacher's head."""
        shape = ModelShape.from_config(self.described)
        head = shape.vocab_size * self.teacher_hidden * 2
        return shape.parameters * HELD_BYTES // RANKS + head


PAIRS = (
    Pair("qwen3_8b_to_4b", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"),
    Pair(
        "llama33_70b_to_8b",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.3-70B-Instruct",
    ),
    Pair("qwen25_14b_to_1_5b", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-14B-Instruct"),
)
# Loss and rho -> bytes that a step adds.
Counted = dict[tuple[str, float], int]


def _described(name: str) -> dict[str, Any]:
    described = known_config(name)
    assert described is not None  # the package has the shapes of its recipes' models
    return described


def count(pair: Pair) -> Counted:
    """Every loss at every rho, in the pair's real shape."""
    meta = torch.device("meta")
    step = StudentStep(pair.described, pair.teacher_hidden, LONGEST, meta)
    return {
        (name, rho): step.measure(loss, rho, meter_of(meta)).counted
        for name, loss in LOSSES.items()
        for rho in RHOS
    }


def added_rows(pair: Pair, counted: Counted) -> list[str]:
    """What a step adds, a row a loss."""
    lines = []
    for name in LOSSES:
        own = [counted[name, rho] for rho in RHOS]
        cells = [pair.name, name, *(f"{value / GB:.1f}" for value in own)]
        cells += [f"{(own[0] - value) / GB:.1f}" for value in (own[1], own[-1])]
        cells.append(f"{(counted[KEPT, 1.0] - own[0]) / GB:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def whole_row(pair: Pair, counted: Counted) -> str:
    """Savings as shares of all that a rank holds at its peak under the kept chunks."""
    held = pair.held()
    whole = held + counted[KEPT, 1.0]

    def saved(name: str, rho: float) -> str:
        return f"{(counted[KEPT, 1.0] - counted[name, rho]) / whole:.0%}"

    cells = [pair.name, f"{held / GB:.1f}", f"{whole / GB:.1f}"]
    cells += [saved(KEPT, rho) for rho in RHOS[1:]]
    cells += [saved("chunks recomputed", 1.0), saved(FUSED, 1.0)]
    cells += [saved(FUSED, rho) for rho in (0.5, 0.1)]
    return f"| {' | '.join(cells)} |"


def measured_rows(
    pair: Pair,
    device: torch.device,
    text: Text,
    layers: int | None,
    rhos: Sequence[float] = (1.0, 0.5, 0.1),
) -> list[str]:
    """The device's own figure beside the counter's for the same step, a row a loss."""
    described = pair.described
    if device.type == "cpu":
        described["vocab_size"] //= VOCABULARY_SHARE
    step = StudentStep(described, pair.teacher_hidden, text, device, layers=layers)
    meter = meter_of(device)
    step.run(LOSSES[FUSED], 0.1)  # libraries take workspaces at their first call
    lines = []
    for name, loss in LOSSES.items():
        cells = [pair.name, name]
        for rho in rhos:
            try:
                found = step.measure(loss, rho, meter)
            except torch.OutOfMemoryError:
                cells += ["out of memory", ""]
                continue
            assert found.measured is not None
            cells += [f"{found.measured / GB:.2f}", f"{found.counted / GB:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def counted_tables(pairs: Sequence[Pair]) -> list[str]:
    """The two tables of the real shapes."""
    added = [
        "| pair | loss | rho = 1 | 0.5 | 0.2 | 0.1 | selection to 0.5 saves | selection to 0.1 "
        "saves | the loss alone saves |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    whole = [
        "| pair | held, GB | with chunks kept, rho = 1, GB | selection 0.5 | 0.2 | 0.1 "
        "| recomputed, no selection | fused, no selection | fused and 0.5 | fused and 0.1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        counted = count(pair)
        added += added_rows(pair, counted)
        whole.append(whole_row(pair, counted))
        print("\n".join([*added[-len(LOSSES) :], whole[-1]]), flush=True)
    return [
        "## What a step adds, GB",
        "",
        f"Counted. One text of {LONGEST.prompt:,} + {LONGEST.response:,} tokens, bfloat16, layers "
        f"recomputed; chunks of {CHUNK_ROWS:,} rows. The last column is beside `{KEPT}`, both at "
        "rho = 1.",
        "",
        *added,
        "",
        "## What is saved of a rank's whole memory",
        "",
        "`held`: by formula, "
        f"{HELD_BYTES} bytes a parameter (weights in bfloat16; gradients, master copy, AdamW's "
        f"moments in float32) over {RANKS} ranks with ZeRO stage 3, and the teacher's head in "
        f"bfloat16. Shares are of held and added together under `{KEPT}` at rho = 1.",
        "",
        *whole,
    ]


def measured_table(pairs: Sequence[Pair], device: torch.device) -> list[str]:
    """The table of steps that were taken."""
    on_gpu = device.type == "cuda"
    text, layers = (LONGEST, None) if on_gpu else (SHORT, FEW_LAYERS)
    what = "most bytes allocated" if on_gpu else "most resident bytes of the process"
    size = "in the real shapes"
    if not on_gpu:
        size = f"with {FEW_LAYERS} of the layers and a {VOCABULARY_SHARE}th of the vocabulary"
    chosen = pairs if on_gpu else pairs[-1:]
    rows = [row for pair in chosen for row in measured_rows(pair, device, text, layers)]
    return [
        "## Measured",
        "",
        f"{what[0].upper()}{what[1:]} above weights and inputs, GB, {size}, one text of "
        f"{text.prompt:,} + {text.response:,} tokens; beside it what the counter found in that "
        "very step, which leaves out workspaces.",
        "",
        "| pair | loss | rho = 1 | counted | 0.5 | counted | 0.1 | counted |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def main() -> None:
    """Count, measure, print, write."""
    names = [pair.name for pair in PAIRS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    pairs = [pair for pair in PAIRS if pair.name in arguments.pairs]
    device = torch.device(arguments.device)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} thread(s) of {os.cpu_count()} CPUs ({platform.machine()})"
    )
    text = "\n".join(
        [
            "# Peak memory of a trainer's step against rho",
            "",
            f"`python benchmarks/peak_memory.py --device {device.type}`; {where}, torch "
            f"{torch.__version__}. GB are 10^9 bytes.",
            "",
            *counted_tables(pairs),
            "",
            *measured_table(pairs, device),
            "",
        ]
    )
    publish(text, arguments.out)


if __name__ == "__main__":
    main()
