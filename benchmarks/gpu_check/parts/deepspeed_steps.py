"""A trainer of one rank in bfloat16 at one ZeRO stage, against plain float32 autograd.

Then it sleeps and wakes, as it does where roles take turns on a GPU.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from one_rank import one_rank
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.parking import give_back_free_memory
from gpu_check.findings import Findings
from gpu_check.inputs import Size, held_gb, peak_gb, random_model, random_texts, synchronize
from opd_ray.checksums import FileSum
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import StudentSettings, TrainerSettings
from opd_ray.types import HiddenSignal, TrainItem

if TYPE_CHECKING:
    from actors.trainer.trainer import Trainer

STEPS, RATE = 4, 3e-4
# bfloat16 against float32: of the loss, and of the gradient's norm before it is clipped.
LOSS_LIMIT, NORM_LIMIT = 0.02, 0.05
# Of the state's size, what may stay on the GPU: buckets of gradients, what is gathered.
KEPT = 0.3


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; ``argument``: the stage, or ``offload``: 3, with all of it in main memory."""
    size = Size.on(device)
    offload = argument == "offload"
    head_VD, items, signals = _batch(size)
    with tempfile.TemporaryDirectory() as folder:
        path = random_model(Path(folder), size)
        loss, norm = _plain(path, head_VD, items, signals, device)
        settings = TrainerSettings(
            zero_stage=3 if offload else int(argument),
            offload_optimizer=offload,
            offload_parameters=offload,
            dtype=Dtype.bfloat16,
            gpus_per_rank=int(device == "cuda"),
            gradient_checkpointing=True,
            max_grad_norm=1.0,
            learning_rate=RATE,
        )
        trainer = one_rank(StudentSettings(path=str(path)), settings, head_VD)
    rows = float(sum(len(item.rows) for item in items))
    half = len(items) // 2
    micro_batches = [items[:half], items[half:]]
    losses, seconds = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        account = trainer.train_step(micro_batches, rows, RATE, signals)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
        losses.append(account.loss_sum / rows)
        if len(losses) == 1:
            findings.check("loss beside float32, relative", abs(losses[0] / loss - 1), LOSS_LIMIT)
            findings.check(
                "norm of the gradient beside float32, relative",
                abs(account.grad_norm / norm - 1),
                NORM_LIMIT,
            )
    findings.figure("losses", ", ".join(f"{value:.4f}" for value in losses), "nats")
    findings.check("the last loss over the first", losses[-1] / losses[0], 1.0)
    for name, tensor in trainer.engine.weights():
        if not bool(torch.isfinite(tensor).all()):
            findings.check(f"{name} is finite", float("nan"), 0.0)
    findings.figure("a step", min(seconds), "s")
    findings.figure("most memory", peak_gb(device), "GB")
    _sleep(findings, trainer, device, offload)
    account = trainer.train_step(micro_batches, rows, RATE, signals)
    findings.check("loss after sleep over the one before", account.loss_sum / rows / losses[-1], 1)


def _sleep(findings: Findings, trainer: Trainer, device: str, offload: bool) -> None:
    """Have it give its memory back and take it again: every byte of its state is as it was."""
    before, awake = _state(trainer), held_gb(device)
    trainer.sleep()
    give_back_free_memory(torch.device(device))
    asleep = held_gb(device)
    findings.figure("memory awake", awake, "GB")
    findings.figure("memory asleep", asleep, "GB")
    if device == "cuda" and not offload:
        findings.check("bytes allocated asleep over state", _allocated() / before.nbytes, KEPT)
    trainer.wake()
    after = _state(trainer)
    changed = sum(after.sums[name] != one for name, one in before.sums.items())
    findings.check("files of the state that sleep has changed", changed, 0)


@dataclass(frozen=True)
class _State:
    """Weights and optimizer as a checkpoint has them: sums of its files, bytes of all."""

    sums: dict[str, FileSum]
    nbytes: int


def _state(trainer: Trainer) -> _State:
    with tempfile.TemporaryDirectory() as folder:
        sums = trainer.engine.save(folder)
        nbytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        return _State(sums, nbytes)


def _allocated() -> int:
    """Bytes of tensors on the GPU."""
    return torch.cuda.memory_allocated()


def _batch(size: Size) -> tuple[np.ndarray, list[TrainItem], dict[str, HiddenSignal]]:
    """Every second row of each response is kept."""
    rng = np.random.default_rng(2)
    wide = size.hidden * 3 // 2
    head_VD = rng.standard_normal((size.vocab, wide), np.float32) * np.float32(2 * wide**-0.5)
    items, signals = [], {}
    for number, (prompt, response) in enumerate(random_texts(size)):
        rows = np.arange(0, len(response), 2, dtype=np.int32)
        items.append(
            TrainItem(
                rollout_id=str(number),
                prompt_ids=prompt,
                response_ids=response,
                rows=rows,
                weights=np.ones(len(rows), np.float32),
                rollout_logprob=np.zeros(len(rows), np.float32),
            )
        )
        hidden = rng.standard_normal((len(rows), wide), np.float32)
        signals[str(number)] = HiddenSignal(hidden)
    return head_VD, items, signals


def _plain(
    path: Path,
    head_VD: np.ndarray,
    items: list[TrainItem],
    signals: dict[str, HiddenSignal],
    device: str,
) -> tuple[float, float]:
    """Mean reverse KL of the kept rows and the norm of its gradient, text by text in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device)
    of_teacher = torch.from_numpy(head_VD).to(device)
    total = sum(len(item.rows) for item in items)
    loss = 0.0
    for item in items:
        text = np.concatenate((item.prompt_ids, item.response_ids))
        logits_TV = model(torch.from_numpy(text)[None].long().to(device)).logits[0]
        kept = torch.from_numpy(item.rows).long() + len(item.prompt_ids) - 1
        log_p = logits_TV[kept.to(device)].log_softmax(-1)
        hidden = torch.from_numpy(np.asarray(signals[item.rollout_id].hidden)).to(device)
        part: Tensor = F.kl_div(
            (hidden @ of_teacher.T).log_softmax(-1), log_p, reduction="sum", log_target=True
        )
        (part / total).backward()
        loss += part.item() / total
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return loss, float(torch.nn.utils.get_total_norm(gradients))
