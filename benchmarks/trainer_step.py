"""One trainer step at rho = 1, 0.5, 0.2 and 0.1 against two all-token steps; writes a table.

    python benchmarks/trainer_step.py [--repeats 3] [--layers 6] [--sequences 8] [--threads 2]

The real Trainer on one rank (DeepSpeed, ZeRO 0, float32, AdamW) and a random Qwen3-shaped student
with a tied head; reverse KL from a random teacher's hidden states. The trunk always reads all
tokens; rho is the share of response tokens that the head and the loss see. Variants:

- `naive, all tokens`: whole logits of student and teacher, log-softmax, KL, autograd: the kind of
  step that the published saving is measured against;
- `fused, rho`: the product; `fused, rho = 1` is the fair baseline of what selection itself saves;
- `trunk only`: the same step without head and loss: forward and backward of the trunk, clipping
  and optimizer. No choice of tokens saves any of it.

Each runs in a process of its own; the repeats take turns, so that a busy machine slows all; ratios
are of medians. CPU time is user and system time of all threads, steadier than the clock where
others use the machine too, most of all with one thread (threads spin while they wait). Memory is
the process's peak in a step above what it holds between steps (weights, AdamW's moments, the
teacher's head). Needs Linux (/proc, glibc). Writes results/trainer_step.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from one_rank import one_rank
from page import publish
from process_memory import MIB, process_memory, settle
from worker import Worker

from actors.process import trainer_environment
from opd_ray.config.schema import StudentSettings, TrainerSettings
from opd_ray.types import HiddenSignal, TrainItem

if TYPE_CHECKING:
    from actors.trainer.batch import MicroBatch
    from actors.trainer.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "trainer_step.md"
NAIVE, FAIR, TRUNK = "naive, all tokens", "fused, rho = 1", "trunk only"
RHOS = (1.0, 0.5, 0.2, 0.1)
VOCAB, HIDDEN, TEACHER_HIDDEN = 49_152, 512, 768
PROMPT, RESPONSE = 32, 224  # tokens


@dataclass(frozen=True)
class Plan:
    """What every process is told."""

    folder: str
    sequences: int
    threads: int


@dataclass(frozen=True)
class Run:
    wall: float  # seconds
    cpu: float  # seconds
    loss: float  # nats a kept token
    rows: int
    extra: int  # bytes
    held: int  # bytes


def make_student(folder: str, layers: int) -> tuple[int, int]:
    """Save a random student; returns its parameters and those of its head."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HIDDEN // 64,
        num_key_value_heads=HIDDEN // 128,
        head_dim=64,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    return model.num_parameters(), model.get_output_embeddings().weight.numel()


def make_batch(sequences: int, rho: float) -> tuple[list[TrainItem], dict[str, HiddenSignal]]:
    """Random texts of one length; which rows are kept changes nothing of what a step costs."""
    rng = np.random.default_rng(0)
    items, signals = [], {}
    for number in range(sequences):
        ids = rng.integers(0, VOCAB, PROMPT + RESPONSE).astype(np.int32)
        hidden = rng.standard_normal((RESPONSE, TEACHER_HIDDEN), np.float32)
        rows = np.sort(rng.permutation(RESPONSE)[: int(rho * RESPONSE)]).astype(np.int32)
        items.append(
            TrainItem(
                rollout_id=str(number),
                prompt_ids=ids[:PROMPT],
                response_ids=ids[PROMPT:],
                rows=rows,
                weights=np.ones(len(rows), np.float32),
                rollout_logprob=np.zeros(len(rows), np.float32),
            )
        )
        signals[str(number)] = HiddenSignal(hidden[rows])
    return items, signals


class NaiveObjective:
    """Whole logits, log-softmax, KL, autograd."""

    def divergence(self, batch: MicroBatch, scale: float, hidden_ND, weight_VD, bias_V):
        import torch
        import torch.nn.functional as F

        log_p_NV = F.log_softmax(hidden_ND @ weight_VD.T, -1)
        with torch.no_grad():
            (target,) = batch.targets
            log_q_NV = F.log_softmax(target.hidden_ND @ target.head_VD.T, -1)
        terms_NV = F.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True)
        divergence_N = terms_NV.sum(-1)
        logprob_N = log_p_NV.detach().gather(1, batch.sampled_ids_N[:, None])[:, 0]
        loss = (divergence_N * batch.weights_N * scale).sum()
        return loss, divergence_N.detach(), logprob_N


class TrunkObjective:
    """Something to differentiate that costs nothing beside the trunk."""

    def divergence(self, batch: MicroBatch, scale: float, hidden_ND, weight_VD, bias_V):
        loss_N = hidden_ND.square().mean(-1) * scale
        return loss_N.sum(), loss_N.detach(), loss_N.detach()


def start_trainer(variant: str, plan: Plan) -> Trainer:
    """The real trainer, with another objective in the variants that are not the product's."""
    head_VD = np.random.default_rng(1).standard_normal((VOCAB, TEACHER_HIDDEN), np.float32)
    head_VD *= 2 * TEACHER_HIDDEN**-0.5
    trainer = one_rank(
        StudentSettings(path=plan.folder), TrainerSettings(threads=plan.threads), head_VD
    )
    others = {NAIVE: NaiveObjective, TRUNK: TrunkObjective}
    if variant in others:
        trainer._objective = others[variant]()
    return trainer


def work(pipe: Connection, variant: str, rho: float, plan: Plan) -> None:
    """Start a trainer, then take a step for every word received, answering with a Run."""
    import torch

    torch.set_num_threads(plan.threads)
    trainer = start_trainer(variant, plan)
    items, signals = make_batch(plan.sequences, rho)
    pipe.send("ready")
    while pipe.recv():
        held = settle()
        rows = sum(len(item.rows) for item in items)
        cpu = time.process_time()
        stats = trainer.train_step([items], float(rows), 1e-6, signals)
        cpu = time.process_time() - cpu
        extra = process_memory("VmHWM") - held
        pipe.send(Run(stats.seconds, cpu, stats.loss_sum / rows, rows, extra, held))


def measure(plan: Plan, repeats: int) -> dict[str, list[Run]]:
    """All variants in turns, after one step each that is not counted (it makes AdamW's moments)."""
    variants = {NAIVE: 1.0} | {f"fused, rho = {rho:g}": rho for rho in RHOS} | {TRUNK: 1.0}
    workers = {name: Worker(work, name, rho, plan) for name, rho in variants.items()}
    for worker in workers.values():
        worker.receive()
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, worker in workers.items():
            run = worker.ask()
            seconds = f"{run.wall:6.2f} s wall, {run.cpu:6.2f} s CPU"
            print(f"{name:20} {seconds}, {run.extra / MIB:6.0f} MiB", flush=True)
            if repeat > 0:
                runs[name].append(run)
    for worker in workers.values():
        worker.close()
    losses = [runs[name][0].loss for name in (NAIVE, FAIR)]
    if abs(losses[1] / losses[0] - 1) > 1e-3:
        raise RuntimeError(f"naive and fused disagree: losses {losses[0]:g} and {losses[1]:g}")
    return runs


def table(runs: dict[str, list[Run]]) -> list[str]:
    """One row for each variant."""

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in runs[name])

    lines = [
        "| step | rows in the loss | wall, s | / naive | / fused, rho = 1 | CPU, s | / naive "
        "| / fused, rho = 1 | trunk's share of CPU | extra memory, MiB | / naive "
        "| / fused, rho = 1 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in runs.items():
        cells = [name, "0" if name == TRUNK else str(own[0].rows)]
        for field, unit, digits in (("wall", 1, 2), ("cpu", 1, 2), ("extra", MIB, 0)):
            value = median(name, field)
            if field == "extra":
                cells.append(f"{median(TRUNK, 'cpu') / median(name, 'cpu'):.2f}")
            cells.append(f"{value / unit:.{digits}f}")
            cells += [f"{value / median(base, field):.2f}" for base in (NAIVE, FAIR)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    threads = arguments.threads
    # Inherited by the workers, whose OpenMP reads its number of threads when it loads.
    os.environ |= trainer_environment(TrainerSettings(threads=threads))
    with tempfile.TemporaryDirectory() as folder:
        parameters, head = make_student(folder, arguments.layers)
        runs = measure(Plan(folder, arguments.sequences, threads), arguments.repeats)
    held = statistics.median(run.held for own in runs.values() for run in own)
    text = "\n".join(
        [
            "# One trainer step with token selection",
            "",
            f"Made by `python benchmarks/trainer_step.py --repeats {arguments.repeats} --layers "
            f"{arguments.layers} --sequences {arguments.sequences} --threads {threads}`:",
            f"median of {arguments.repeats} steps in turns, {threads} thread(s) of "
            f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU, all under a "
            f"load of {os.getloadavg()[1]:.1f}.",
            f"Student: {parameters / 1e6:.0f} M parameters, of which {head / 1e6:.0f} M the tied "
            f"head ({VOCAB:,} x {HIDDEN}), {arguments.layers} layers; teacher's hidden",
            f"states of {TEACHER_HIDDEN}. One micro-batch of {arguments.sequences} texts of "
            f"{PROMPT} + {RESPONSE} tokens; float32, ZeRO 0, AdamW.",
            "",
            *table(runs),
            "",
            f"`extra memory`: peak of a step above the about {held / MIB:,.0f} MiB that a process "
            "holds between steps; activations of the",
            "trunk and all gradients are in it, whatever rho is. `/ naive` is what published "
            "savings are measured against; `/ fused,",
            "rho = 1` is what choosing tokens itself saves. `trunk's share`: the `trunk only` "
            "step's time over the row's. The smaller",
            "the head is beside the trunk, the less there is to save; here it holds "
            f"{head / parameters:.0%} of the parameters.",
            "",
        ]
    )
    publish(text, RESULTS)


if __name__ == "__main__":
    main()
