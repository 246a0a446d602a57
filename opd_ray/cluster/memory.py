"""Memory of every process, from config and model shapes alone.

Estimates, not limits: allocators, kernels and libraries add to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from opd_ray.batching.micro_batches import width_of
from opd_ray.cluster.step_size import (
    ELEMENT_BYTES,
    FP32_BYTES,
    held_tokens,
    signal_bytes_per_token,
    step_tokens,
)
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.resolved_teachers import WorkingTeacher
from opd_ray.config.schema import Config, effective_zero_stage
from opd_ray.config.teacher import LOGITS_CHUNK_BYTES, TeacherSettings
from opd_ray.divergence.blocks import chunk_rows
from opd_ray.models.shape import ModelShape

# Resident size of a process that has imported torch, vLLM or DeepSpeed and Ray (measured: 0.63 GB).
PROCESS_BYTES = 650 << 20
# Memory of its own that an environment's process takes beside what it loads (measured).
ENVIRONMENT_BYTES = 75 << 20
# AdamW's two moments, and the float32 master copy that ZeRO and bfloat16 keep beside the weights.
MOMENT_BYTES, MASTER_BYTES = 8, 4
# Rows of the vocabulary alive at once in the sampler (logits, log-probabilities, entropy terms) and
# in the loss (both distributions, their difference, the gradient).
SAMPLER_COPIES, LOSS_COPIES = 3, 4
# Parameters that ZeRO-3 holds gathered at once at most (DeepSpeed's stage3_max_live_parameters).
LIVE_PARAMETERS = 10**9


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process by purpose, in main memory and on each of its GPUs."""

    host: Mapping[str, int] = field(default_factory=dict)
    device: Mapping[str, int] = field(default_factory=dict)
    gpu_share: float = 1.0  # of a GPU's memory that the process may take

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())


def rollout_memory(config: Config, student: ModelShape) -> MemoryEstimate:
    """One rollout actor, per GPU where it has several.

    On a GPU vLLM takes its whole share; counted are the weights and a KV cache for one response. On
    a CPU it reads every prompt in one piece. Processes of environments are counted with it.
    """
    settings, environments = config.rollout, config.environment_set
    width = ELEMENT_BYTES[settings.dtype]
    on_gpu = settings.gpus_per_actor > 0
    longest = longest_text(config) * student.kv_bytes_per_token(width)
    split = settings.tensor_parallel_size
    read = max(settings.max_num_batched_tokens, 0 if on_gpu else config.student.context_length)
    model = {
        "weights": student.parameters * width // split,
        "KV cache": longest // split if on_gpu else settings.kv_cache_bytes,
        "sampler": SAMPLER_COPIES * settings.max_num_seqs * student.vocab_size * FP32_BYTES,
        "activations": read * _live_elements(student) * width // split,
    }
    placed = _placed(model, on_gpu, gpu_share=settings.gpu_memory_utilization)
    if not environments.own_processes:
        return placed
    processes = environments.concurrent(settings.max_num_seqs) * ENVIRONMENT_BYTES
    return replace(placed, host={**placed.host, "environments": processes})


def teacher_memory(
    config: Config, settings: TeacherSettings, teacher: ModelShape
) -> MemoryEstimate:
    """One replica of a teacher that runs a model, with the signals it holds until training."""
    width = ELEMENT_BYTES[settings.dtype]
    one = signal_bytes_per_token(config, settings, teacher)
    held = held_tokens(config) * one // settings.replicas
    split = max(1, int(settings.gpus_per_replica))
    longest = longest_text(config)
    # A vLLM engine reads long texts in pieces.
    in_pieces = settings.traits.vllm_engine
    read = settings.batch_tokens if in_pieces else max(settings.batch_tokens, longest)
    # Float32 logits of a chunk of rows, their exponentials, and the originals in 16 bits.
    chunk = min(LOGITS_CHUNK_BYTES, read * teacher.vocab_size * FP32_BYTES)
    follows = settings.follow_decay is not None and settings.dtype is not Dtype.float32
    averages = teacher.parameters * FP32_BYTES if follows else 0
    model = {
        "weights": teacher.parameters * width // split + averages,
        "activations": read * _live_elements(teacher) * width // split,
        "logits": chunk * 5 // 2,
    }
    if settings.traits.vllm_engine:
        one_text = longest * teacher.kv_bytes_per_token(width) // split
        model["KV cache"] = one_text if settings.gpus_per_replica else settings.kv_cache_bytes
        share = settings.gpu_memory_utilization * min(1.0, settings.gpus_per_replica or 1.0)
    else:
        share = min(1.0, settings.gpus_per_replica)
    return _placed(model, settings.gpus_per_replica > 0, {"signals": held}, share)


def judge_memory(
    config: Config, teacher: WorkingTeacher, shapes: Mapping[str, ModelShape]
) -> MemoryEstimate | None:
    """One replica of a teacher, or of an ensemble with all its members; None: unknown shapes.

    ``shapes`` are of models by path.
    """
    found = []
    for model in teacher.models:
        shape = shapes.get(model.path or "")
        if shape is None:
            return None
        found.append(teacher_memory(config, model, shape))
    host: Counter[str] = Counter()
    device: Counter[str] = Counter()
    for estimate in found:
        host.update(estimate.host)
        device.update(estimate.device)
    host["process"] = PROCESS_BYTES
    return replace(found[0], host=host, device=device)


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
    settings = config.trainer
    width, ranks = ELEMENT_BYTES[settings.dtype], settings.ranks
    stage = effective_zero_stage(settings)
    count = student.parameters
    keeps_master = stage > 0 or settings.dtype is not Dtype.float32
    optimizer = count * (MOMENT_BYTES + MASTER_BYTES * keeps_master) // (ranks if stage else 1)
    # Summed over micro-batches in float32, whatever the format of the weights.
    gradients = count * FP32_BYTES // (ranks if stage >= 2 else 1)
    layer = student.layer_activation_elements()
    if settings.gradient_checkpointing:
        kept_per_token = student.layers * student.hidden_size + layer
    else:
        kept_per_token = student.layers * layer
    on_gpu = settings.gpus_per_rank > 0
    padded = width_of(on_gpu=on_gpu, bfloat16=settings.dtype is Dtype.bfloat16)
    read = max(settings.micro_batch_tokens, padded(longest_text(config)))
    most = step_tokens(config).response
    rows = chunk_rows(most, student.vocab_size, torch.float32, config.loss.chunk_rows)
    model = {
        "weights": count * width // (ranks if stage >= 3 else 1),
        "activations": read * kept_per_token * width,
        "loss": LOSS_COPIES * rows * student.vocab_size * FP32_BYTES,
        "gradient of the head": student.embedding_parameters * FP32_BYTES,
    }
    if stage >= 3 and ranks > 1:
        model["gathered weights"] = min(count, LIVE_PARAMETERS) * width
    if heads:
        of_heads = sum(head.embedding_parameters for head in heads)
        model["teacher head"] = of_heads * ELEMENT_BYTES[config.teacher.dtype]
    state = {"gradients": gradients, "optimizer": optimizer}
    # Where nobody has decided, a copy is made only if there is room for it.
    copied = count * (MASTER_BYTES + MOMENT_BYTES) // ranks
    host = {"copy for a checkpoint": copied} if config.run.checkpoint_beside else {}
    if config.run.lag:
        # Those that were sent last stay in the object store beside rank 0; each rank counts its
        # share.
        host["weights last sent"] = count * width // ranks
    if settings.offload_optimizer:
        # DeepSpeed keeps a second copy of the gradients for the optimizer.
        return _placed(model, on_gpu, host | state | {"gradients": 2 * gradients})
    return _placed(model | state, on_gpu, host)


def longest_text(config: Config) -> int:
    """Most tokens that one prompt and its response can have."""
    text = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    return min(text, config.student.context_length)


def checkpoint_bytes(config: Config, student: ModelShape) -> int:
    """Disk for the checkpoints that are kept, one more being written, and the exported model."""
    state = student.parameters * (MASTER_BYTES + MOMENT_BYTES)
    exported = student.parameters * ELEMENT_BYTES[config.trainer.dtype]
    return (config.run.keep_checkpoints + 1) * state + exported * config.run.export_at_end


def _live_elements(shape: ModelShape) -> int:
    """Elements per token alive at once without gradients: the widest point of one layer."""
    return 2 * shape.hidden_size + max(
        3 * shape.intermediate_size, (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    )


def _placed(
    model: dict[str, int],
    on_gpu: bool,
    host: dict[str, int] | None = None,
    gpu_share: float = 1.0,
) -> MemoryEstimate:
    own = {"process": PROCESS_BYTES, **(host or {})}
    if on_gpu:
        return MemoryEstimate(own, model, gpu_share)
    return MemoryEstimate(own | model)
