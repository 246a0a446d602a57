"""What doctor's estimate of a trainer says against what the process really takes; writes a table.

    python benchmarks/memory_estimates.py [--layers 4] [--sequences 6] [--threads 2]

The real Trainer on one rank (DeepSpeed, AdamW) and the random student of trainer_step.py, all its
texts in one micro-batch. Every variant is a process of its own that takes two steps; measured is
the peak of its resident set. Needs Linux (/proc, glibc). Writes results/memory_estimates.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from one_rank import one_rank
from process_memory import process_memory
from trainer_step import PROMPT, RESPONSE, TEACHER_HIDDEN, VOCAB, make_batch, make_student
from worker import Worker

from actors.process import trainer_environment
from opd_ray.cluster.trainer_memory import trainer_memory
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.schema import Config, RolloutSettings, StudentSettings, TrainerSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.shape import read_shape

RESULTS = Path(__file__).parent / "results" / "memory_estimates.md"
RECOMPUTED = {"gradient_checkpointing": True}


def variants(layers: int) -> dict[str, TrainerSettings]:
    """By name."""
    half = RECOMPUTED | {"recomputed_layers": layers // 2}
    return {
        "float32, all kept": TrainerSettings(),
        "float32, half recomputed": TrainerSettings(**half),
        "bfloat16, all recomputed": TrainerSettings(dtype=Dtype.bfloat16, **RECOMPUTED),
    }


def work(pipe: Connection, folder: str, settings: TrainerSettings, sequences: int) -> None:
    """Two steps, and the peak of the process in bytes."""
    import torch

    torch.set_num_threads(settings.threads)
    head_VD = np.random.default_rng(1).standard_normal((VOCAB, TEACHER_HIDDEN), np.float32)
    trainer = one_rank(StudentSettings(path=folder), settings, head_VD)
    items, signals = make_batch(sequences, 1.0)
    total = float(sum(item.weights.sum() for item in items))
    for _ in range(2):
        trainer.train_step([items], total, 1e-5, signals)
    pipe.send(process_memory("VmHWM"))


def measured(folder: str, settings: TrainerSettings, sequences: int) -> int:
    """In a process of its own."""
    worker = Worker(work, folder, settings, sequences)
    peak = worker.receive()
    worker.close()
    return int(peak)


def estimated(folder: str, settings: TrainerSettings, sequences: int) -> int:
    """Bytes, as doctor counts them, of a run that has these texts in one micro-batch."""
    tokens = sequences * (PROMPT + RESPONSE)
    config = Config(
        student=StudentSettings(path=folder),
        trainer=replace(settings, micro_batch_tokens=tokens),
        rollout=RolloutSettings(
            prompts_per_step=sequences, samples_per_prompt=1, max_new_tokens=RESPONSE
        ),
        teacher=TeacherSettings(path=folder, signal=SignalChoice.hidden),
    )
    config.data.max_prompt_tokens = PROMPT
    shape = read_shape(folder)
    assert shape is not None
    teacher = replace(shape, hidden_size=TEACHER_HIDDEN)
    return trainer_memory(config, shape, [teacher]).host_bytes


def main() -> None:
    """Every variant, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    lines = [
        "| trainer | estimated | measured | estimate / measured |",
        "| --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        parameters, _ = make_student(folder, args.layers)
        for name, settings in variants(args.layers).items():
            own = replace(settings, threads=args.threads)
            os.environ.update(trainer_environment(own))
            said, found = (f(folder, own, args.sequences) for f in (estimated, measured))
            lines.append(
                f"| {name} | {said / 1e9:.2f} GB | {found / 1e9:.2f} GB | {said / found:.2f} |"
            )
            print(lines[-1], flush=True)
    text = (
        "# Doctor's estimate of a trainer against its process\n\n"
        f"Qwen3 shape, {parameters / 1e6:.0f} M parameters in {args.layers} layers, "
        f"{args.sequences} texts of {PROMPT + RESPONSE} tokens in one micro-batch, exact loss; "
        "peak of the resident set after two steps on a CPU (`memory_estimates.py`).\n\n"
    )
    RESULTS.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
