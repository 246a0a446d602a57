"""Whether the actors of a plan fit into the memory of their nodes, and what to change if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from opd_ray.cluster import Node
from opd_ray.config.schema import Config, RolloutSettings
from opd_ray.config.teacher import TeacherSettings, model_path
from opd_ray.config.teachers import cast_of, key_of, models_of
from opd_ray.estimate import ELEMENT_BYTES, judge_memory
from opd_ray.model_shape import ModelShape

if TYPE_CHECKING:
    from opd_ray.placement import PlacedActor

_TRAINER_STATE = (
    "trainer.zero_stage=3 over more trainer.ranks, or trainer.offload_optimizer=true where there "
    "are GPUs"
)
# What to change when this is the largest part of a process that does not fit.
_REMEDIES: Mapping[tuple[str, str], str] = {
    ("trainer", "weights"): "trainer.zero_stage=3 over more trainer.ranks",
    ("trainer", "optimizer"): _TRAINER_STATE,
    ("trainer", "gradients"): _TRAINER_STATE,
    ("trainer", "activations"): (
        "trainer.gradient_checkpointing=true, or a lower trainer.micro_batch_tokens or "
        "rollout.max_new_tokens"
    ),
    ("trainer", "loss"): "a lower loss.chunk_rows",
    ("trainer", "teacher head"): "teacher.signal=topk",
    ("rollout", "weights"): (
        "rollout.dtype=bfloat16, or more rollout.gpus_per_actor and rollout.tensor_parallel_size"
    ),
    ("rollout", "KV cache"): (
        "a lower rollout.kv_cache_bytes, or on GPUs more rollout.gpus_per_actor and "
        "rollout.tensor_parallel_size"
    ),
    ("rollout", "sampler"): "a lower rollout.max_num_seqs",
    ("rollout", "activations"): "a lower rollout.max_num_batched_tokens",
    ("teacher", "weights"): (
        "teacher.dtype=bfloat16, or teacher.kind=vllm with more teacher.gpus_per_replica and "
        "teacher.tensor_parallel_size"
    ),
    ("teacher", "KV cache"): (
        "a lower teacher.kv_cache_bytes, or on GPUs more teacher.gpus_per_replica and "
        "teacher.tensor_parallel_size"
    ),
    ("teacher", "activations"): "a lower teacher.batch_tokens or rollout.max_new_tokens",
    ("teacher", "signals"): "teacher.signal=topk, or fewer rollout.prompts_per_step",
}
_OTHERWISE = "give its actors a node with more memory"


def memory_problems(node: Node, actors: Sequence[PlacedActor]) -> list[str]:
    """Where the estimated use on a node exceeds what it or one of its GPUs has.

    Args:
        node: where the actors are.
        actors: those of that node; memory that is unknown counts as none.
    """
    known = [(actor, actor.memory) for actor in actors if actor.memory is not None]
    problems = []
    total = sum(memory.host_bytes for _, memory in known)
    if total > node.memory_bytes:
        largest, memory = max(known, key=lambda pair: pair[1].host_bytes)
        problems.append(
            f"node {node.name}: its actors need about {gigabytes(total)}, it has "
            f"{gigabytes(node.memory_bytes)}; most of it for {largest.name} "
            f"({gigabytes(memory.host_bytes)}){_advice(largest.role, memory.host)}"
        )
    if node.gpu_memory_bytes is None:
        return problems
    for actor, memory in known:
        usable = int(memory.gpu_share * node.gpu_memory_bytes)
        if memory.device_bytes > usable:
            share = f"{memory.gpu_share:.0%} of " if memory.gpu_share < 1 else ""
            problems.append(
                f"{actor.name}: needs about {gigabytes(memory.device_bytes)} a GPU and may take "
                f"{gigabytes(usable)} ({share}{gigabytes(node.gpu_memory_bytes)})"
                f"{_advice(actor.role, memory.device)}"
            )
    return problems


def capacity_problems(
    config: Config, student: ModelShape | None, teachers: Mapping[str, ModelShape]
) -> Iterator[str]:
    """Sizes in the config that do not hold what the run puts there, on any machine.

    The shapes, of teachers by path, are those that are known.
    """
    rollout = config.rollout
    if student is not None and not rollout.gpus_per_actor:
        yield from _kv_problem("rollout", rollout, student, config.student.context_length)
    for key, settings in models_of(config).items():
        shape = teachers.get(model_path(settings) or "")
        if shape is not None and settings.kind == "vllm" and not settings.gpus_per_replica:
            yield from _kv_problem(key, settings, shape, config.student.context_length)
    for name, settings in cast_of(config).teachers.items():
        memory = judge_memory(config, settings, teachers)
        held = memory.host["signals"] if memory else 0
        if held > settings.store_bytes:
            key = key_of(name)
            yield (
                f"{key}.store_bytes = {settings.store_bytes}: the signals of a step may take "
                f"{gigabytes(held)} a replica; set it to {held}, or use {key}.signal=topk, more "
                f"{key}.replicas or fewer rollout.prompts_per_step"
            )


def _kv_problem(
    key: str, settings: RolloutSettings | TeacherSettings, shape: ModelShape, tokens: int
) -> Iterator[str]:
    """Whether an engine's KV cache on the CPU is too small for one text of ``tokens``."""
    needed = shape.kv_cache_bytes(
        tokens, ELEMENT_BYTES[settings.dtype], settings.tensor_parallel_size
    )
    if needed > settings.kv_cache_bytes:
        yield (
            f"{key}.kv_cache_bytes = {settings.kv_cache_bytes}: one text of student.context_length "
            f"= {tokens} tokens takes {needed} bytes; raise it at least to that, or lower the "
            "context"
        )


def _advice(role: str, parts: Mapping[str, int]) -> str:
    """The largest part of a process, and the keys that make it smaller."""
    part = max(parts, key=lambda name: parts[name])
    remedy = _REMEDIES.get((role, part), _OTHERWISE)
    return f", {gigabytes(parts[part])} of that {part}: use {remedy}"


def gigabytes(nbytes: float) -> str:
    """Bytes for people: "1.53 GB", or "12.4 MB" below one hundredth of that."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"
