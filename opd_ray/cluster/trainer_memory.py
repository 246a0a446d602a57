"""Memory of a trainer rank: what ZeRO shards, what offloading moves, what an adapter saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from opd_ray.batching.micro_batches import width_of
from opd_ray.cluster.memory import (
    MASTER_BYTES,
    MOMENT_BYTES,
    MemoryEstimate,
    longest_text,
    place,
    sleeps_in_main_memory,
    trained_parameters,
)
from opd_ray.cluster.step_size import ELEMENT_BYTES, FP32_BYTES, step_tokens
from opd_ray.config.choices import BaseFormat, Dtype, SignalChoice, SyncBackend
from opd_ray.config.schema import Config
from opd_ray.config.trainer import effective_zero_stage
from opd_ray.divergence.blocks import chunk_rows
from opd_ray.models.shape import ModelShape

# Rows of the vocabulary alive at once in the loss: both distributions, their difference, the
# gradient.
LOSS_COPIES = 4
# Parameters that ZeRO-3 holds gathered at once at most (DeepSpeed's stage3_max_live_parameters).
LIVE_PARAMETERS = 10**9
# Bytes of a weight in four bits (NF4), with a float32 scale for every 64 of them.
NF4_BYTES = 0.5 + 4 / 64


def head_shapes(config: Config, shapes: Mapping[str, ModelShape]) -> list[ModelShape]:
    """The models whose output heads the trainers hold, as far as their shapes are known."""
    if config.teacher.signal is not SignalChoice.hidden:
        return []
    paths = [model.path or "" for model in config.teacher_set.models.values()]
    return [shapes[path] for path in paths if path in shapes]


def trainer_memory(
    config: Config, student: ModelShape, heads: Sequence[ModelShape] = ()
) -> MemoryEstimate:
    """One trainer rank under its ZeRO stage; ``heads``: see :func:`head_shapes`."""
    settings, lora = config.trainer, config.student.lora
    width, ranks = ELEMENT_BYTES[settings.dtype], settings.ranks
    stage = effective_zero_stage(settings)
    trained = trained_parameters(config, student)
    keeps_master = stage > 0 or settings.dtype is not Dtype.float32
    sharded = ranks if stage else 1
    state = {
        "optimizer": trained * (MOMENT_BYTES + MASTER_BYTES * keeps_master) // sharded,
        # Summed over micro-batches in float32, whatever the format of the weights.
        "gradients": trained * FP32_BYTES // (ranks if stage >= 2 else 1),
    }
    weights = _weight_bytes(config, student)
    on_gpu = settings.gpus_per_rank > 0
    most = step_tokens(config).response
    rows = chunk_rows(most, student.vocab_size, torch.float32, config.loss.chunk_rows)
    model = {
        "weights": weights // (ranks if stage >= 3 else 1),
        "activations": _read_tokens(config) * activation_bytes_per_token(config, student),
        "loss": LOSS_COPIES * rows * student.vocab_size * FP32_BYTES,
    }
    if not lora.on:
        model["gradient of the head"] = student.embedding_parameters * FP32_BYTES
    if stage >= 3 and (ranks > 1 or settings.offload_parameters):
        model["gathered weights"] = min(weights, LIVE_PARAMETERS * width)
    if heads:
        of_heads = sum(head.embedding_parameters for head in heads)
        model["teacher head"] = of_heads * ELEMENT_BYTES[config.teacher.dtype]
    # Where nobody has decided, a copy is made only if there is room for it.
    copied = trained * (MASTER_BYTES + MOMENT_BYTES) // ranks
    host = {"copy for a checkpoint": copied} if config.run.checkpoint_beside else {}
    if (config.run.lag or sleeps_in_main_memory(config)) and config.sync.backend is SyncBackend.ray:
        # Those that were sent last stay in the object store beside rank 0; each rank counts its
        # share.
        sent = trained if config.serves_adapter else student.parameters
        host["weights last sent"] = sent * width // ranks
    if settings.offload_optimizer:
        # DeepSpeed keeps a second copy of the gradients for the optimizer.
        host |= state | {"gradients": 2 * state["gradients"]}
    else:
        model |= state
    if settings.offload_parameters:
        host["weights"] = model.pop("weights")
    if on_gpu and sleeps_in_main_memory(config):
        host["asleep"] = sum(model.get(part, 0) for part in ("weights", "teacher head", *state))
    return place(model, on_gpu, host)


def activation_bytes_per_token(config: Config, student: ModelShape) -> int:
    """What the layers keep for the backward pass, at its peak.

    A recomputed layer keeps its input. Layers that keep all are done before one is recomputed, so
    the memory of one layer is counted only where there is none of them.
    """
    settings = config.trainer
    width = ELEMENT_BYTES[settings.dtype]
    layer = student.layer_activation_bytes(width)
    if not settings.gradient_checkpointing:
        return student.layers * layer
    recomputed = min(settings.recomputed_layers or student.layers, student.layers)
    whole = max(1, student.layers - recomputed)
    return recomputed * student.hidden_size * width + whole * layer


def _read_tokens(config: Config) -> int:
    """Most tokens of a micro-batch; a longer text goes alone."""
    settings = config.trainer
    bfloat16 = settings.dtype is Dtype.bfloat16
    padded = width_of(on_gpu=settings.gpus_per_rank > 0, bfloat16=bfloat16)
    return max(settings.micro_batch_tokens, padded(longest_text(config)))


def _weight_bytes(config: Config, student: ModelShape) -> int:
    """Of all that the student computes with, adapter and frozen weights in four bits included."""
    lora, width = config.student.lora, ELEMENT_BYTES[config.trainer.dtype]
    whole = student.parameters * width
    if not lora.on:
        return whole
    if lora.base is BaseFormat.nf4:
        packed = student.layers * student.layer_matrix_parameters
        whole += int(packed * (NF4_BYTES - width))
    return whole + trained_parameters(config, student) * width
