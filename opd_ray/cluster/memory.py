"""Memory of every process, from config and model shapes alone.

Estimates, not limits: allocators, kernels and libraries add to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from opd_ray.cluster.step_size import (
    ELEMENT_BYTES,
    FP32_BYTES,
    held_tokens,
    signal_bytes_per_token,
    step_tokens,
)
from opd_ray.config.choices import Dtype, LoraForm, PlacementChoice
from opd_ray.config.resolved_teachers import WorkingTeacher
from opd_ray.config.schema import Config
from opd_ray.config.teacher import LOGITS_CHUNK_BYTES, TeacherSettings
from opd_ray.models.shape import ModelShape

# Resident size of a process that has imported torch, vLLM or DeepSpeed and Ray (measured: 0.63 GB).
PROCESS_BYTES = 650 << 20
CACHE = "KV cache"
# Memory of its own that an environment's process takes beside what it loads (measured).
ENVIRONMENT_BYTES = 75 << 20
# CUDA's context and the kernels that libraries load, of every process on a GPU, asleep or not. From
# what others report of such GPUs; nothing here has run on one.
GPU_PROCESS_BYTES = 600 << 20
# AdamW's two moments, and the float32 master copy that ZeRO and bfloat16 keep beside the weights.
MOMENT_BYTES, MASTER_BYTES = 8, 4
# Rows of the vocabulary alive at once in the sampler: logits, log-probabilities, entropy terms.
SAMPLER_COPIES = 3
# Versions of an adapter that a rollout engine holds while it takes in a new one.
ADAPTER_VERSIONS = 2
# Bytes of a response token of a rollout on disk, and of each of its recorded top-k: ids, mask,
# entropy and log-probability.
WRITTEN_BYTES, RECORDED_BYTES = 4 + 1 + 4 + 4, 4 + 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process by purpose, in main memory and on each of its GPUs."""

    host: Mapping[str, int] = field(default_factory=dict)
    device: Mapping[str, int] = field(default_factory=dict)
    gpu_share: float = 1.0  # of a GPU's memory that the process may take
    cache_token_bytes: int = 0  # of the KV cache, in each process of an engine; 0: there is none

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    def cache_tokens(self, gpu_bytes: int | None) -> int | None:
        """Tokens of one engine's KV cache, on GPUs of that size; None: no cache, or unknown."""
        if not self.cache_token_bytes:
            return None
        room = self.host.get(CACHE, 0)
        if self.device:
            if gpu_bytes is None:
                return None
            room = int(self.gpu_share * gpu_bytes) - self.device_bytes + self.device[CACHE]
        return max(0, room) // self.cache_token_bytes


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
        CACHE: longest // split if on_gpu else settings.kv_cache_bytes,
        "sampler": SAMPLER_COPIES * settings.max_num_seqs * student.vocab_size * FP32_BYTES,
        "activations": read * _live_elements(student) * width // split,
    }
    if config.serves_adapter:
        lora = config.student.lora
        adapter = student.adapter_parameters(lora.rank, lora.target_modules)
        model["adapters"] = ADAPTER_VERSIONS * adapter * width // split
    host = {}
    if on_gpu and config.serves_adapter and sleeps_in_main_memory(config):
        # Of all workers of the engine: nobody brings the frozen weights again.
        host["asleep"] = (model["weights"] + model["adapters"]) * split
    placed = replace(
        place(model, on_gpu, host, settings.gpu_memory_utilization),
        cache_token_bytes=student.kv_bytes_per_token(width) // split,
    )
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
        model[CACHE] = one_text if settings.gpus_per_replica else settings.kv_cache_bytes
        share = settings.gpu_memory_utilization * min(1.0, settings.gpus_per_replica or 1.0)
    else:
        share = min(1.0, settings.gpus_per_replica)
    host = {"signals": held}
    if sleeps_in_main_memory(config) and settings.gpus_per_replica:
        host["asleep"] = model["weights"]
    placed = place(model, settings.gpus_per_replica > 0, host, share)
    token = teacher.kv_bytes_per_token(width) // split if CACHE in model else 0
    return replace(placed, cache_token_bytes=token)


def judge_memory(
    config: Config, teacher: WorkingTeacher, shapes: Mapping[str, ModelShape]
) -> MemoryEstimate | None:
    """One replica of a teacher, or of an ensemble with all its members; None: unknown shapes.

    ``shapes`` are of models by path.
    """
    if config.asks_trainers(teacher.settings):
        # The trainers' memory holds the model.
        shape = shapes.get(teacher.settings.path or "")
        if shape is None:
            return None
        memory = teacher_memory(config, teacher.settings, shape)
        signals = {name: memory.host[name] for name in ("process", "signals")}
        return MemoryEstimate(signals)
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


def longest_text(config: Config) -> int:
    """Most tokens that one prompt and its response can have."""
    text = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    return min(text, config.student.context_length)


def sleeps_in_main_memory(config: Config) -> bool:
    """Whether what a process has on a GPU is in main memory while others have their turn.

    Rollout engines drop theirs, as their weights come anew from the trainers; those that serve an
    adapter keep the weights below it.
    """
    return config.cluster.placement is PlacementChoice.turns


def trained_parameters(config: Config, student: ModelShape) -> int:
    """The student's, or those of its adapter alone."""
    lora = config.student.lora
    return (
        student.adapter_parameters(lora.rank, lora.target_modules)
        if lora.on
        else student.parameters
    )


def checkpoint_bytes(config: Config, student: ModelShape) -> int:
    """Disk for the checkpoints that are kept, one more being written, and the exported model."""
    run, trained = config.run, trained_parameters(config, student)
    one = trained * (MASTER_BYTES + MOMENT_BYTES) + _ahead_bytes(config)
    as_adapter = config.student.lora.on and config.student.lora.export is LoraForm.adapter
    exported = trained if as_adapter else student.parameters
    width = ELEMENT_BYTES[config.trainer.dtype]
    return (run.keep_checkpoints + 1) * one + exported * width * run.export_at_end


def _ahead_bytes(config: Config) -> int:
    """Of the next step's rollouts, which a checkpoint holds with ``run.lag``."""
    if not config.run.lag:
        return 0
    tokens = step_tokens(config)
    recorded = config.rollout.record_topk * RECORDED_BYTES
    return tokens.response * (WRITTEN_BYTES + recorded) + tokens.prompt * 4


def _live_elements(shape: ModelShape) -> int:
    """Elements per token alive at once without gradients: the widest point of one layer."""
    return 2 * shape.hidden_size + max(
        3 * shape.intermediate_size, (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    )


def place(
    model: dict[str, int],
    on_gpu: bool,
    host: dict[str, int] | None = None,
    gpu_share: float = 1.0,
) -> MemoryEstimate:
    """The parts of a model where they are: on the GPU, or with ``host`` in main memory."""
    own = {"process": PROCESS_BYTES, **(host or {})}
    if on_gpu:
        return MemoryEstimate(own, {"process": GPU_PROCESS_BYTES, **model}, gpu_share)
    return MemoryEstimate(own | model)
